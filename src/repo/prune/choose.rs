//! What is to be done with each pack: pure, from what was seen.
//!
//! A pack that no snapshot needs anything of is marked; one that was marked long enough ago is deleted. Of those that are
//! needed in part, the emptiest are repacked until what is not needed takes no more than was allowed, and small ones are
//! joined, since every little backup leaves two. What is younger than the grace period is left alone.

use super::super::pack::{DATA_PACK_BYTES, PackKind};
use super::PruneOptions;
use super::look::{Look, Mark, Pack};

/// Packs of content shorter than this are joined with others,
const SMALL_DATA_BYTES: u64 = DATA_PACK_BYTES as u64 / 4;
/// and packs of trees shorter than this,
pub(super) const SMALL_TREE_BYTES: u64 = 512 << 10;
/// once there are so many of them: each is written again a few times at most in its life.
const SMALL_PACKS_MIN: usize = 8;

/// What is to be done, each pack by its place.
#[derive(Debug, Default)]
pub(super) struct Choice {
    /// Marked long enough ago and not needed.
    pub(super) delete: Vec<u32>,
    /// Marked and needed after all: by a snapshot that was on its way then, or for what is lost elsewhere.
    pub(super) spare: Vec<u32>,
    /// Not needed, not marked yet.
    pub(super) mark: Vec<u32>,
    /// To be emptied into new packs, then marked.
    pub(super) repack: Vec<u32>,
}

/// Decides.
pub(super) fn choose(look: &Look, options: &PruneOptions) -> Choice {
    let is_old = |pack: &Pack| look.now_ms.saturating_sub(pack.put_ms) >= options.grace_ms();
    let due = |pack: &Pack| pack.mark == Mark::Due && pack.listed.is_some();
    let packs = &look.packs;
    Choice {
        delete: packs.filter(|pack| due(pack) && !pack.is_needed),
        spare: packs.filter(|pack| due(pack) && pack.is_needed),
        mark: packs.filter(|pack| pack.stays() && !pack.is_needed && is_old(pack)),
        repack: repack(look, options, is_old),
    }
}

/// Returns the bytes of a pack that hold what nobody needs.
pub(super) fn unused(pack: &Pack) -> u64 {
    let bytes = u128::from(pack.listed.unwrap_or(0));
    let unused = bytes * u128::from(pack.raw.saturating_sub(pack.raw_needed)) / u128::from(pack.raw.max(1));
    u64::try_from(unused).expect("not more than the pack's length")
}

fn repack(look: &Look, options: &PruneOptions, is_old: impl Fn(&Pack) -> bool) -> Vec<u32> {
    let packs = &look.packs;
    let is_kept = |pack: &Pack| pack.stays() && pack.is_needed && pack.kind.is_some();
    let kept = packs.filter(is_kept);
    let sum = |bytes: fn(&Pack) -> u64| kept.iter().map(|place| bytes(packs.at(*place))).sum::<u64>();
    let (total, mut wasted) = (sum(|pack| pack.listed.unwrap_or(0)), sum(unused));
    let allowed = total / 1000 * u64::from(options.max_unused_permille);
    let mut by_waste: Vec<u32> = kept.iter().copied().filter(|place| is_old(packs.at(*place))).collect();
    let per_mille = |pack: &Pack| unused(pack) * 1000 / pack.listed.unwrap_or(0).max(1);
    by_waste.sort_by_key(|place| std::cmp::Reverse(per_mille(packs.at(*place))));
    let mut chosen = Vec::new();
    let mut rest = Vec::new();
    for place in by_waste {
        let waste = unused(packs.at(place));
        if waste > 0 && wasted > allowed {
            wasted -= waste;
            chosen.push(place);
        } else {
            rest.push(place);
        }
    }
    for (kind, bytes) in [(PackKind::Data, SMALL_DATA_BYTES), (PackKind::Tree, SMALL_TREE_BYTES)] {
        let is_small = |pack: &Pack| pack.kind == Some(kind) && pack.listed.is_some_and(|listed| listed < bytes);
        let small: Vec<u32> = rest.iter().copied().filter(|place| is_small(packs.at(*place))).collect();
        if small.len() >= SMALL_PACKS_MIN {
            chosen.extend(small);
        }
    }
    within(look, options, chosen)
}

/// Takes as many packs as may be read, in the order in which they were put, so that neighbours stay together.
fn within(look: &Look, options: &PruneOptions, mut chosen: Vec<u32>) -> Vec<u32> {
    let (most, mut bytes) = (options.max_repack_bytes.unwrap_or(u64::MAX), 0_u64);
    chosen.retain(|place| {
        let more = look.packs.at(*place).listed.unwrap_or(0);
        let fits = bytes.saturating_add(more) <= most;
        bytes += if fits { more } else { 0 };
        fits
    });
    chosen.sort_by_key(|place| (look.packs.at(*place).put_ms, look.packs.at(*place).id));
    chosen
}

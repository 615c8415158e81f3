//! How the objects of a bucket are named in a snapshot: keys as paths, metadata as extended attributes.
//!
//! Pure, and the same for who stores them and who puts them back (`docs/format.md`, "Buckets as sources"). Every key has
//! one path and every path at most one key. An ordinary key is its own path; what no path can hold is told by names that
//! begin with `%`. It does not know where objects come from.

use super::tree::{NAME_BYTES_MAX, Name};

/// The folder at the top of a snapshot that holds buckets.
pub const TOP: &[u8] = b"s3:";
/// The folders above the keys: [`TOP`], the endpoint, the bucket.
pub const ABOVE_KEYS: usize = 3;
/// No key is longer.
pub const KEY_BYTES_MAX: usize = 1024;
/// An empty part of a key, as between two slashes or behind the last one.
const EMPTY: &[u8] = b"%empty";
/// The object whose key is the path of the folder that it is in.
pub const OBJECT: &[u8] = b"%object";
/// The parts `.` and `..`.
const DOT: &[u8] = b"%dot";
const DOT_DOT: &[u8] = b"%dotdot";
/// Begins a name that goes on with the next one: the part is too long for one.
const GOES_ON: &[u8] = b"%+";

/// The attribute that holds an object's entity tag, without its quotes.
pub const ETAG: &str = "user.s3.etag";
/// The attribute that holds a key that its path does not spell.
pub const KEY: &str = "user.s3.key";
const META: &str = "user.s3.meta.";
const META_HEADER: &str = "x-amz-meta-";
/// Headers of an object that are kept, and their attributes.
const HEADERS: [(&str, &str); 7] = [
    ("cache-control", "user.s3.cache-control"),
    ("content-disposition", "user.s3.content-disposition"),
    ("content-encoding", "user.s3.content-encoding"),
    ("content-language", "user.s3.content-language"),
    ("content-type", "user.s3.content-type"),
    ("expires", "user.s3.expires"),
    ("x-amz-website-redirect-location", "user.s3.website-redirect-location"),
];

/// Returns the names on the way to a key below its bucket; `None` if no path can hold it.
#[must_use]
pub fn components(key: &str) -> Option<Vec<Vec<u8>>> {
    let mut out = Vec::new();
    for part in key.split('/') {
        match part {
            "" => out.push(EMPTY.to_vec()),
            "." => out.push(DOT.to_vec()),
            ".." => out.push(DOT_DOT.to_vec()),
            part => push_part(part, &mut out),
        }
    }
    let fits = key.len() <= KEY_BYTES_MAX && out.iter().all(|name| Name::new(name).is_ok());
    fits.then_some(out)
}

fn push_part(mut part: &str, out: &mut Vec<Vec<u8>>) {
    loop {
        let escape: &[u8] = if part.starts_with('%') { b"%" } else { b"" };
        if escape.len() + part.len() <= NAME_BYTES_MAX {
            return out.push([escape, part.as_bytes()].concat());
        }
        let (now, later) = part.split_at(part.floor_char_boundary(NAME_BYTES_MAX - GOES_ON.len()));
        out.push([GOES_ON, now.as_bytes()].concat());
        part = later;
    }
}

/// Returns the key that names below a bucket stand for; `None` if they stand for none.
#[must_use]
pub fn key<'a>(names: impl IntoIterator<Item = &'a [u8]>) -> Option<String> {
    let (mut out, mut joins) = (Vec::new(), true);
    let mut is_object = false;
    for name in names {
        if is_object {
            return None; // it is an object's name, and no folder's
        }
        if name == OBJECT {
            is_object = true;
            continue;
        }
        if !std::mem::take(&mut joins) {
            out.push(b'/');
        }
        match name {
            EMPTY => {}
            DOT => out.push(b'.'),
            DOT_DOT => out.extend_from_slice(b".."),
            name => match (name.strip_prefix(GOES_ON), name.strip_prefix(b"%")) {
                (Some(part), _) => {
                    out.extend_from_slice(part);
                    joins = true;
                }
                (None, Some(part)) if part.starts_with(b"%") => out.extend_from_slice(part),
                (None, Some(_)) => return None,
                (None, None) => out.extend_from_slice(name),
            },
        }
    }
    String::from_utf8(out).ok()
}

/// Returns the attribute that keeps a header; `None` for headers that are not an object's own.
#[must_use]
pub fn attribute_of(header: &str) -> Option<String> {
    if let Some(name) = header.strip_prefix(META_HEADER) {
        return Some(format!("{META}{name}"));
    }
    HEADERS.iter().find(|(known, _)| *known == header).map(|(_, attribute)| (*attribute).to_owned())
}

/// Returns the header that an attribute keeps.
#[must_use]
pub fn header_of(attribute: &[u8]) -> Option<String> {
    let attribute = std::str::from_utf8(attribute).ok()?;
    if let Some(name) = attribute.strip_prefix(META) {
        return Some(format!("{META_HEADER}{name}"));
    }
    HEADERS.iter().find(|(_, known)| *known == attribute).map(|(header, _)| (*header).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(of: &str, path: &str) {
        let names = components(of).unwrap();
        assert_eq!(String::from_utf8(names.join(&b'/')).unwrap(), path);
        assert_eq!(key(names.iter().map(|name| &name[..])).as_deref(), Some(of));
    }

    #[test]
    fn ordinary_keys_are_their_own_paths_and_all_others_have_one() {
        check("photos/2026/a b.jpg", "photos/2026/a b.jpg");
        check("100%/50%.txt", "100%/50%.txt");
        check("ключ/é+\n", "ключ/é+\n");
        check("a//b", "a/%empty/b");
        check("/a", "%empty/a");
        check("a/", "a/%empty");
        check("//", "%empty/%empty/%empty");
        check("./../...", "%dot/%dotdot/...");
        check("%empty/%%/%", "%%empty/%%%/%%");
        let long = "x".repeat(600);
        check(&long, &format!("%+{0}/%+{0}/{1}", "x".repeat(253), "x".repeat(94)));
        let wide = format!("{}é%{}", "x".repeat(252), "y".repeat(254));
        check(&wide, &format!("%+{}/%+é%{}/{}", "x".repeat(252), "y".repeat(250), "y".repeat(4)));
        check(&"%".repeat(255), &format!("%+{}/{}", "%".repeat(253), "%".repeat(3)));
        assert_eq!(components("a\0"), None);
        assert_eq!(components(&"a".repeat(1025)), None);
    }

    #[test]
    fn an_object_in_the_folder_of_its_own_name_has_its_key() {
        let of = |names: &[&str]| key(names.iter().map(|name| name.as_bytes()));
        assert_eq!(of(&["a", "%object"]).as_deref(), Some("a"));
        assert_eq!(of(&["a", "%empty", "%object"]).as_deref(), Some("a/"));
        assert_eq!(of(&["a", "%object", "b"]), None);
        assert_eq!(of(&["a", "%what"]), None);
        assert_eq!(key([&b"\xff"[..]]), None);
    }

    #[test]
    fn what_headers_become_they_are_made_of_again() {
        for header in ["content-type", "x-amz-meta-a-b.c", "expires", "x-amz-website-redirect-location"] {
            assert_eq!(header_of(attribute_of(header).unwrap().as_bytes()).as_deref(), Some(header));
        }
        assert_eq!(
            (attribute_of("date"), header_of(b"user.mime_type"), header_of(ETAG.as_bytes())),
            (None, None, None)
        );
    }

    proptest::proptest! {
        #[test]
        fn every_key_comes_back_from_its_path(of in "([/.%+a-cé]|empty|object|x{120}){0,12}") {
            let names = components(&of).unwrap();
            proptest::prop_assert_eq!(key(names.iter().map(|name| &name[..])), Some(of));
        }

        #[test]
        fn two_keys_never_share_a_path(a in "[/.%+e]{0,6}", b in "[/.%+e]{0,6}") {
            proptest::prop_assert_eq!(components(&a) == components(&b), a == b);
        }
    }
}

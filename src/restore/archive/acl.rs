//! POSIX ACLs: from the bytes that Linux keeps them in to the text that tar has for them.

/// The only version of the bytes there is.
const VERSION: u32 = 2;
/// Bytes of an entry: tag, permissions, id.
const ENTRY_BYTES: usize = 8;

/// Returns an ACL as text, with numbers for users and groups; `None` if the bytes are no ACL.
pub(super) fn text(value: &[u8]) -> Option<String> {
    let (version, entries) = value.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY_BYTES != 0 {
        return None;
    }
    let entries: Option<Vec<String>> = entries.chunks_exact(ENTRY_BYTES).map(entry).collect();
    Some(entries?.join(","))
}

fn entry(bytes: &[u8]) -> Option<String> {
    let tag = u16::from_le_bytes(*bytes.first_chunk()?);
    let bits = u16::from_le_bytes(*bytes.get(2..)?.first_chunk()?);
    let id = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
    let who = match tag {
        0x01 => "user:".to_owned(),
        0x02 => format!("user:{id}"),
        0x04 => "group:".to_owned(),
        0x08 => format!("group:{id}"),
        0x10 => "mask:".to_owned(),
        0x20 => "other:".to_owned(),
        _ => return None,
    };
    let may = |bit: u16, letter: char| if bits & bit > 0 { letter } else { '-' };
    Some(format!("{who}:{}{}{}", may(4, 'r'), may(2, 'w'), may(1, 'x')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acl_is_written_as_text() {
        let entry =
            |tag: u16, bits: u16, id: u32| [&tag.to_le_bytes()[..], &bits.to_le_bytes(), &id.to_le_bytes()].concat();
        let none = u32::MAX;
        let bytes = [
            VERSION.to_le_bytes().to_vec(),
            entry(1, 7, none),
            entry(2, 6, 1000),
            entry(4, 4, none),
            entry(8, 0, 50),
            entry(0x10, 6, none),
            entry(0x20, 1, none),
        ]
        .concat();
        let expected = "user::rwx,user:1000:rw-,group::r--,group:50:---,mask::rw-,other::--x";
        assert_eq!(text(&bytes).as_deref(), Some(expected));
        for bad in [&bytes[..3], &bytes[..11], &[1, 0, 0, 0], &[2, 0, 0, 0, 3, 0, 7, 0, 0, 0, 0, 0]] {
            assert_eq!(text(bad), None);
        }
    }
}

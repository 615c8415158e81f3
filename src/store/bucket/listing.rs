//! Pages of a listing: from XML to keys, sizes, times and entity tags. Pure.
//!
//! Keys are taken as they are, blanks at their ends included, and decoded where the server says that it encoded them.

use quick_xml::Reader;
use quick_xml::events::Event;

/// One object of a listing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Its key.
    pub key: String,
    /// Its length.
    pub bytes: u64,
    /// When it was put, by the clock of the store.
    pub modified_unix_ms: i64,
    /// Its entity tag, without quotes; empty if there is none.
    pub etag: String,
}

/// A page, and how to ask for the next one.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) objects: Vec<Listed>,
    pub(super) next: Option<String>,
}

/// Reads a page.
pub(super) fn parse(xml: &[u8]) -> Result<Page, String> {
    let mut raw = Raw::default();
    let mut reader = Reader::from_reader(xml);
    let (mut within, mut text) = (Vec::<Vec<u8>>::new(), String::new());
    loop {
        match reader.read_event().map_err(|error| error.to_string())? {
            Event::Start(tag) => {
                within.push(tag.local_name().as_ref().to_vec());
                text.clear();
            }
            Event::Text(part) => text.push_str(&part.decode().map_err(|error| error.to_string())?),
            Event::CData(part) => text.push_str(&part.decode().map_err(|error| error.to_string())?),
            Event::GeneralRef(part) => {
                let name = part.decode().map_err(|error| error.to_string())?;
                match part.resolve_char_ref().map_err(|error| error.to_string())? {
                    Some(char) => text.push(char),
                    None => text.push_str(
                        quick_xml::escape::resolve_predefined_entity(&name)
                            .ok_or_else(|| format!("&{name}; is not known"))?,
                    ),
                }
            }
            Event::End(_) => {
                let path: Vec<&[u8]> = within.iter().map(Vec::as_slice).collect();
                raw.take(&path, std::mem::take(&mut text))?;
                within.pop();
            }
            Event::Eof if within.is_empty() => return raw.page(),
            Event::Eof => return Err("it breaks off".to_owned()),
            _ => {}
        }
    }
}

/// A page as it comes.
#[derive(Default)]
struct Raw {
    page: Page,
    object: Listed,
    is_listing: bool,
    is_truncated: bool,
    is_encoded: bool,
}

impl Raw {
    /// Takes what an element holds, by the names of those around it.
    fn take(&mut self, path: &[&[u8]], text: String) -> Result<(), String> {
        match path {
            [b"ListBucketResult"] => self.is_listing = true,
            [_, b"IsTruncated"] => self.is_truncated = text.trim() == "true",
            [_, b"EncodingType"] => self.is_encoded = text.trim() == "url",
            [_, b"NextContinuationToken"] => self.page.next = Some(text).filter(|token| !token.is_empty()),
            [_, b"Contents"] => self.page.objects.push(std::mem::take(&mut self.object)),
            [_, b"Contents", b"Key"] => self.object.key = text,
            [_, b"Contents", b"ETag"] => self.object.etag = text.trim().trim_matches('"').to_owned(),
            [_, b"Contents", b"Size"] => {
                self.object.bytes = text.trim().parse().map_err(|_| format!("{text:?} is no size"))?;
            }
            [_, b"Contents", b"LastModified"] => {
                let time: jiff::Timestamp = text.trim().parse().map_err(|_| format!("{text:?} is no time"))?;
                self.object.modified_unix_ms = time.as_millisecond();
            }
            _ => {}
        }
        Ok(())
    }

    fn page(mut self) -> Result<Page, String> {
        if !self.is_listing {
            return Err("it is no listing".to_owned());
        }
        match (self.is_truncated, &self.page.next) {
            (true, None) => return Err("it does not say how to go on".to_owned()),
            (false, _) => self.page.next = None,
            (true, Some(_)) => {}
        }
        if self.is_encoded {
            for object in &mut self.page.objects {
                object.key = decode(&object.key).ok_or_else(|| format!("{:?} is no encoded key", object.key))?;
            }
        }
        Ok(self.page)
    }
}

/// Decodes a key of a listing whose keys are encoded as in a form.
fn decode(encoded: &str) -> Option<String> {
    let (mut out, mut bytes) = (Vec::with_capacity(encoded.len()), encoded.bytes());
    while let Some(byte) = bytes.next() {
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        out.push(match byte {
            b'+' => b' ',
            b'%' => u8::try_from(digit()? * 16 + digit()?).ok()?,
            byte => byte,
        });
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECT: &str = "<Contents><Key>KEY</Key><LastModified>2026-11-22T13:58:00.250Z</LastModified>\
        <ETag>&quot;0a&quot;</ETag><Size>7</Size><Owner><ID>x</ID></Owner></Contents>";

    fn page(key: &str, more: &str) -> Result<Page, String> {
        let object = OBJECT.replace("KEY", key);
        parse(
            format!("<?xml version=\"1.0\"?>\n<ListBucketResult xmlns=\"u\">{more}{object}</ListBucketResult>")
                .as_bytes(),
        )
    }

    #[track_caller]
    fn check(key: &str, more: &str, expected: &str) {
        let page = page(key, more).unwrap();
        let object =
            Listed { key: expected.to_owned(), bytes: 7, modified_unix_ms: 1_795_355_880_250, etag: "0a".to_owned() };
        assert_eq!((page.objects, page.next), (vec![object], None));
    }

    #[test]
    fn keys_are_what_they_were() {
        check(" a//b &amp;&lt;&#233;&#x9; ", "", " a//b &<é\t ");
        check("a+b%20", "", "a+b%20");
        check("a+b%20%2B%C3%A9%0A/", "<EncodingType>url</EncodingType>", "a b +é\n/");
        assert!(page("%zz", "<EncodingType>url</EncodingType>").is_err());
    }

    #[test]
    fn a_page_says_how_to_go_on_or_that_it_is_the_last() {
        let on = "<IsTruncated>true</IsTruncated>";
        let token = "<NextContinuationToken>t/+=</NextContinuationToken>";
        assert_eq!(page("k", &format!("{on}{token}")).unwrap().next.as_deref(), Some("t/+="));
        assert!(page("k", on).unwrap_err().contains("how to go on"));
        assert_eq!(page("k", &format!("<IsTruncated>false</IsTruncated>{token}")).unwrap().next, None);
        for wrong in ["", "<html></html>", "<ListBucketResult><Contents>", "<ListBucketResult>&x;</ListBucketResult>"] {
            assert!(parse(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}

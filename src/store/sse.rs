//! Server-side encryption: which headers it takes on which request.
//!
//! A kloset is sealed before it leaves the machine; this is for buckets whose rules ask for it all the same. Pure: it
//! makes header values and sends nothing. It does not know keys of AWS.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use md5::{Digest, Md5};

use super::secret::Secret;

/// How the server is to encrypt what is put.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encryption {
    /// `AES256`, `aws:kms` or `aws:kms:dsse`; nothing is said without.
    pub kind: Option<String>,
    /// The key that a key service holds.
    pub kms_key_id: Option<String>,
    /// A key that goes along with each request (SSE-C): 32 bytes in base64.
    pub customer_key: Option<Secret>,
}

/// What may be said as the kind of encryption.
pub const KINDS: [&str; 3] = ["AES256", "aws:kms", "aws:kms:dsse"];

/// The headers of a bucket's encryption.
#[derive(Clone, Debug, Default)]
pub(crate) struct EncryptionHeaders {
    /// For what begins an object: puts, and uploads in parts.
    put: HeaderMap,
    /// For everything about an object's content.
    content: HeaderMap,
}

impl EncryptionHeaders {
    /// Checks what was said and makes headers of it.
    pub(crate) fn new(encryption: &Encryption) -> Result<EncryptionHeaders, String> {
        let mut headers = EncryptionHeaders::default();
        match (&encryption.kind, &encryption.kms_key_id, &encryption.customer_key) {
            (None, Some(_), _) => return Err("there is a sse_kms_key_id but sse is not set to aws:kms".to_owned()),
            (Some(_), _, Some(_)) => return Err("sse and sse_customer_key exclude each other".to_owned()),
            (Some(kind), Some(_), None) if kind == "AES256" => {
                return Err("sse is AES256, which takes no sse_kms_key_id".to_owned());
            }
            (Some(kind), ..) if !KINDS.contains(&kind.as_str()) => {
                return Err(format!("sse {kind:?} is not one of: {}", KINDS.join(", ")));
            }
            _ => {}
        }
        let mut say = |name, value: Option<&String>| match value {
            Some(value) => header(value).map(|value| drop(headers.put.insert(HeaderName::from_static(name), value))),
            None => Ok(()),
        };
        say("x-amz-server-side-encryption", encryption.kind.as_ref())?;
        say("x-amz-server-side-encryption-aws-kms-key-id", encryption.kms_key_id.as_ref())?;
        if let Some(key) = &encryption.customer_key {
            headers.content = customer_headers(key)?;
        }
        Ok(headers)
    }

    /// True where a key goes along with requests.
    pub(crate) fn has_customer_key(&self) -> bool {
        !self.content.is_empty()
    }

    /// Adds what a request needs.
    pub(crate) fn add(&self, method: &Method, query: &str, headers: &mut HeaderMap) {
        let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        let is_part = *method == Method::PUT && has("partNumber");
        let begins = (*method == Method::PUT && !is_part) || (*method == Method::POST && has("uploads"));
        let reads = (*method == Method::GET && !has("list-type")) || *method == Method::HEAD;
        if begins {
            headers.extend(self.put.clone());
        }
        if begins || is_part || reads {
            headers.extend(self.content.clone());
        }
    }
}

fn customer_headers(key: &Secret) -> Result<HeaderMap, String> {
    const KEY_BYTES: usize = 32;
    let wrong = || "sse_customer_key is not 32 bytes in base64: `openssl rand -base64 32` makes one".to_owned();
    let raw = BASE64_STANDARD.decode(key.bytes()).map_err(|_| wrong())?;
    let raw = Secret::new(raw);
    if raw.bytes().len() != KEY_BYTES {
        return Err(wrong());
    }
    let digest = BASE64_STANDARD.encode(Md5::digest(raw.bytes()));
    let text = key.text().ok_or_else(wrong)?;
    let name = |end: &'static str| HeaderName::from_static(end);
    Ok(HeaderMap::from_iter([
        (name("x-amz-server-side-encryption-customer-algorithm"), HeaderValue::from_static("AES256")),
        (name("x-amz-server-side-encryption-customer-key"), header(text)?),
        (name("x-amz-server-side-encryption-customer-key-md5"), header(&digest)?),
    ]))
}

fn header(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text).map_err(|_| "a value of sse cannot stand in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn names(encryption: &Encryption, method: &Method, query: &str) -> Vec<String> {
        let mut headers = HeaderMap::new();
        EncryptionHeaders::new(encryption).unwrap().add(method, query, &mut headers);
        headers.keys().map(|name| name.as_str().trim_start_matches("x-amz-server-side-encryption").to_owned()).collect()
    }

    #[test]
    fn each_request_says_what_it_must_and_no_more() {
        let kms = Encryption { kind: Some("aws:kms".into()), kms_key_id: Some("k".into()), customer_key: None };
        let customer = Encryption { customer_key: Some(KEY.into()), ..Encryption::default() };
        let own = ["-customer-algorithm", "-customer-key", "-customer-key-md5"];
        for (method, query, by_kms, by_customer) in [
            (Method::PUT, "", true, true),
            (Method::POST, "uploads=", true, true),
            (Method::PUT, "partNumber=1&uploadId=x", false, true),
            (Method::POST, "uploadId=x", false, false),
            (Method::GET, "", false, true),
            (Method::HEAD, "", false, true),
            (Method::GET, "list-type=2&prefix=partNumber", false, false),
            (Method::DELETE, "", false, false),
        ] {
            let told = names(&kms, &method, query);
            let expected: &[&str] = if by_kms { &["", "-aws-kms-key-id"] } else { &[] };
            assert_eq!(told, expected, "{method} {query}");
            let expected: &[&str] = if by_customer { &own } else { &[] };
            assert_eq!(names(&customer, &method, query), expected, "{method} {query}");
        }
        assert!(names(&Encryption::default(), &Method::PUT, "").is_empty());
    }

    #[test]
    fn what_does_not_fit_together_is_told_without_the_key() {
        let told = |kind: Option<&str>, kms: Option<&str>, key: Option<&str>| {
            let (kind, kms_key_id) = (kind.map(str::to_owned), kms.map(str::to_owned));
            EncryptionHeaders::new(&Encryption { kind, kms_key_id, customer_key: key.map(Secret::from) }).unwrap_err()
        };
        assert!(told(None, Some("k"), None).contains("sse is not set"));
        assert!(told(Some("AES256"), Some("k"), None).contains("takes no sse_kms_key_id"));
        assert!(told(Some("AES128"), None, None).contains("is not one of: AES256"));
        assert!(told(Some("AES256"), None, Some(KEY)).contains("exclude each other"));
        for wrong in ["AAEC", "HIDDEN", "HIDDEN!"] {
            let told = told(None, None, Some(wrong));
            assert!(told.contains("32 bytes in base64") && !told.contains(wrong), "{told}");
        }
    }

    #[test]
    fn a_key_is_named_by_its_digest() {
        let headers = customer_headers(&KEY.into()).unwrap();
        let digest = headers.get("x-amz-server-side-encryption-customer-key-md5").unwrap();
        assert_eq!(digest.to_str().unwrap(), "tP/LI3N87DFaSk0aoqYgzg==");
        assert!(!format!("{headers:?}").contains(KEY));
    }
}

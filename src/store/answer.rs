//! What a failure of `object_store` means: from an answer or a system error to our `StoreError`.
//!
//! Answers of S3 servers are judged by their status and error code, which `object_store` hands out
//! as text only; `tests/it/store.rs` holds that against real servers. Pure: it sends nothing.

use std::error::Error;
use std::io;

use http::HeaderMap;
use object_store::client::{HttpError, HttpErrorKind};

use super::error::{Outage, Place, StoreError};
use super::keys::KeysError;

/// Turns a failure of `object_store` into ours.
pub(crate) fn classify(at: Place, error: object_store::Error) -> StoreError {
    let answer = Answer::of(&error);
    let (name, store) = (at.name.clone(), at.store.clone());
    if let Some(KeysError(detail)) = find::<KeysError>(&error) {
        return StoreError::Misconfigured { store, detail: detail.clone() };
    }
    let at = Box::new(at);
    let detail = answer.detail();
    if answer.code == "NoSuchBucket" {
        return StoreError::NoSuchBucket { at, source: error.into() };
    }
    if let Some(region) = answer.wrong_region() {
        return StoreError::WrongRegion { at, region, detail, source: error.into() };
    }
    match error {
        object_store::Error::NotFound { .. } => return StoreError::NotFound { name, store },
        object_store::Error::AlreadyExists { .. } => {
            return StoreError::AlreadyExists { name, store };
        }
        _ => {}
    }
    if answer.is_full(&error) {
        return StoreError::Full { at, detail, source: error.into() };
    }
    if let Some(advice) = answer.denial(&error) {
        let detail = format!("{advice} ({detail})");
        return StoreError::Denied { at, detail, source: error.into() };
    }
    match answer.outage(&error) {
        Some(why) => StoreError::Unreachable { at, why, detail, source: error.into() },
        None => StoreError::Other { at, detail, source: error.into() },
    }
}

/// True where the store does not know how to create only what is absent.
pub(crate) fn refuses_condition(error: &object_store::Error) -> bool {
    const EPERM: i32 = 1; // hard links on FAT
    const ENOSYS: i32 = 38; // hard links on some FUSE filesystems
    const EOPNOTSUPP: i32 = 95; // hard links on network filesystems
    let unsupported = |io: &io::Error| matches!(io.raw_os_error(), Some(EPERM | ENOSYS | EOPNOTSUPP));
    match error {
        object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. } => true,
        error => {
            let answer = Answer::of(error);
            matches!(answer.status, Some(405 | 501))
                || answer.code == "NotImplemented"
                || find::<io::Error>(error).is_some_and(unsupported)
        }
    }
}

/// True where the store says that a range begins behind the end.
pub(crate) fn is_range_refusal(error: &object_store::Error) -> bool {
    let answer = Answer::of(error);
    let from_network = find::<HttpError>(error).is_some();
    matches!(error, object_store::Error::Generic { .. }) && !from_network && matches!(answer.status, None | Some(416))
}

/// A refusal after which the same request may be worth another attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It was signed for another region; the right one, where the server names it.
    WrongRegion(Option<String>),
    /// The keys have run out, or are not known any more.
    StaleKeys,
    /// The digest of its content has to go along: a bucket with object lock.
    WantsDigest,
    /// It would come out the same.
    Final,
}

/// Judges a refusal by its headers and what it says.
pub(crate) fn refusal(headers: &HeaderMap, said: &str) -> Refusal {
    const STALE: [&str; 5] =
        ["ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "InvalidAccessKeyId"];
    let answer = Answer::read(said.to_owned(), String::new());
    let named = || headers.get("x-amz-bucket-region")?.to_str().ok().map(str::to_owned);
    match answer.wrong_region() {
        Some(region) => Refusal::WrongRegion(region.or_else(named)),
        // The answer to HEAD has no body.
        None if said.is_empty() && headers.contains_key("x-amz-bucket-region") => Refusal::WrongRegion(named()),
        None if STALE.contains(&answer.code.as_str()) => Refusal::StaleKeys,
        None if answer.message.contains("Content-MD5") || answer.code == "MissingContentMD5" => Refusal::WantsDigest,
        None => Refusal::Final,
    }
}

/// What a server said, picked out of the text of an error.
struct Answer {
    status: Option<u16>,
    code: String,
    message: String,
    region: String,
    text: String,
    cause: String,
}

impl Answer {
    fn of(error: &object_store::Error) -> Answer {
        Answer::read(chain_text(error), root_cause(error))
    }

    fn read(text: String, cause: String) -> Answer {
        let status = between(&text, "status code: ", " ").parse().ok();
        Answer {
            status,
            code: between(&text, "<Code>", "</Code>").to_owned(),
            message: between(&text, "<Message>", "</Message>").to_owned(),
            region: between(&text, "<Region>", "</Region>").to_owned(),
            text,
            cause,
        }
    }

    fn detail(&self) -> String {
        const DETAIL_CHARS_MAX: usize = 300; // servers answer with whole pages
        let status = self.status.map(|status| format!(" {status}"));
        let status = status.unwrap_or_default();
        let detail = match (self.code.as_str(), self.message.trim()) {
            ("", _) if !status.is_empty() => format!("the server answered{status}"),
            ("", _) => self.cause.clone(),
            (code, "") => format!("the server answered{status} {code}"),
            (code, message) => format!("the server answered{status} {code}: {message}"),
        };
        detail.chars().take(DETAIL_CHARS_MAX).collect()
    }

    /// The inner value is the right region where the server names it.
    fn wrong_region(&self) -> Option<Option<String>> {
        let wrong = ["PermanentRedirect", "IllegalLocationConstraintException"].contains(&self.code.as_str())
            || self.text.contains("unexpected scope")
            || self.text.contains("incorrectly configured region")
            || (self.code == "AuthorizationHeaderMalformed"
                && (self.message.contains("region") || !self.region.is_empty()));
        let expecting = || match between(&self.message, "expecting '", "'") {
            // Garage: unexpected scope: "…/us-east-1/s3/aws4_request", expected: "…/garage/s3/…"
            "" => self.message.split_once("expected: ").and_then(|(_, scope)| scope.split('/').nth(1)).unwrap_or(""),
            region => region,
        };
        wrong.then(|| {
            let region = if self.region.is_empty() { expecting() } else { self.region.as_str() };
            (!region.is_empty()).then(|| region.to_owned())
        })
    }

    fn is_full(&self, error: &object_store::Error) -> bool {
        let full = |io: &io::Error| matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        self.status == Some(507)
            || ["QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"].contains(&self.code.as_str())
            || find::<io::Error>(error).is_some_and(full)
    }

    fn denial(&self, error: &object_store::Error) -> Option<&'static str> {
        let by_system = find::<io::Error>(error).map(io::Error::kind);
        match by_system {
            Some(io::ErrorKind::PermissionDenied) => {
                return Some("check owner and mode of the folder");
            }
            Some(io::ErrorKind::ReadOnlyFilesystem) => return Some("the filesystem is read-only"),
            _ => {}
        }
        match self.code.as_str() {
            "InvalidAccessKeyId" => {
                return Some("the store does not know this access key: check access_key");
            }
            "SignatureDoesNotMatch" => return Some("the keys do not fit: check secret_access_key"),
            "RequestTimeTooSkewed" => return Some("the clock of this machine is wrong: set it"),
            "InvalidObjectState" => {
                return Some("the object is in cold storage: have your provider bring it back first");
            }
            "ExpiredToken" | "InvalidToken" => {
                return Some(
                    "the session token has run out and there are no newer keys where it came from: get new ones",
                );
            }
            _ => {}
        }
        let denied = matches!(self.status, Some(401 | 403));
        denied.then_some("check the keys, and that they may list, read and write the bucket")
    }

    fn outage(&self, error: &object_store::Error) -> Option<Outage> {
        if self.status == Some(400) && self.text.contains("HTTPS") {
            return Some(Outage::PlainToTls); // what Go's and nginx' servers answer
        }
        // Codes as well as statuses: S3 answers 400 to a connection that it waited on, and 200 before it fails.
        let wants_fewer =
            ["SlowDown", "ServiceUnavailable", "RequestLimitExceeded", "Throttling", "ThrottlingException"];
        if matches!(self.status, Some(429 | 503)) || wants_fewer.contains(&self.code.as_str()) {
            return Some(Outage::Busy);
        }
        let is_broken = ["InternalError", "RequestTimeout", "OperationAborted", "ConditionalRequestConflict"];
        if matches!(self.status, Some(408 | 500..=599)) || is_broken.contains(&self.code.as_str()) {
            return Some(Outage::Failing);
        }
        let http = find::<HttpError>(error)?;
        let has = |words: &str| self.text.contains(words);
        Some(if is_tls_to_plain(&self.text) {
            Outage::TlsToPlain
        } else if has("certificate") {
            Outage::Certificate
        } else if has("invalid HTTP version") || has("invalid HTTP status") {
            Outage::PlainToTls // a TLS alert is no HTTP
        } else if has("dns error") || has("failed to lookup") {
            Outage::UnknownHost
        } else if has("Connection refused") {
            Outage::Refused
        } else if http.kind() == HttpErrorKind::Timeout || has("timed out") {
            Outage::Timeout
        } else {
            Outage::Broken
        })
    }
}

/// True where rustls received something that is no TLS record.
pub(crate) fn is_tls_to_plain(text: &str) -> bool {
    text.contains("InvalidContentType") || text.contains("corrupt message")
}

/// The text of an error and of all its sources; a source already told by the one above is left out.
pub(crate) fn chain_text(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

/// The words of the last source, which say it best: "Connection refused (os error 111)".
fn root_cause(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

fn find<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

fn between<'a>(text: &'a str, start: &str, end: &str) -> &'a str {
    let Some((_, rest)) = text.split_once(start) else {
        return "";
    };
    rest.split_once(end).map_or("", |(found, _)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: &str, body: &str) -> StoreError {
        let text = format!("Server returned non-2xx status code: {status}: {body}");
        let at = Place { operation: "listing", name: "packs".to_owned(), store: "s3://h/b".into() };
        classify(at, object_store::Error::Generic { store: "S3", source: text.into() })
    }

    #[track_caller]
    fn check(status: &str, body: &str, expected: &str) {
        let text = answered(status, body).to_string();
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn answers_of_servers_say_what_to_do() {
        let aws = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' \
            is wrong; expecting 'eu-west-3'</Message><Region>eu-west-3</Region></Error>";
        check("400 Bad Request", aws, "set NAME region eu-west-3");
        let garage = "<Error><Code>InvalidRequest</Code><Message>Bad request: Authorization header \
            malformed, unexpected scope: 20260101/us-east-1/s3/aws4_request, \
            expected: 20260101/garage/s3/aws4_request </Message></Error>";
        check("400 Bad Request", garage, "set NAME region garage");
        check("404 Not Found", "<Code>NoSuchBucket</Code>", "the bucket does not exist");
        check("403 Forbidden", "<Code>SignatureDoesNotMatch</Code>", "check secret_access_key");
        check("403 Forbidden", "", "check the keys");
        check("403 Forbidden", "<Code>RequestTimeTooSkewed</Code>", "the clock of this machine");
        check("503 Slow Down", "<Code>SlowDown</Code><Message>m</Message>", "is busy and stayed so: try again later");
        check("500 Oops", "", "is broken and stayed so: try again later");
        check("400 Bad Request", "<Code>RequestTimeout</Code>", "try again later");
        check("507 Full", "", "the store is full");
        let go = "Client sent an HTTP request to an HTTPS server.";
        check("400 Bad Request", go, "set NAME use_tls true");
        check("418 I'm a teapot", "", "listing \"packs\" in \"s3://h/b\": the server answered 418");
    }

    #[test]
    fn refusals_tell_whether_another_attempt_is_worth_it() {
        let of = |said: &str| refusal(&HeaderMap::new(), said);
        let region = |name: &str| Refusal::WrongRegion(Some(name.to_owned()));
        let aws = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; \
            expecting 'eu-west-3'</Message><Region>eu-west-3</Region></Error>";
        assert_eq!(of(aws), region("eu-west-3"));
        let minio = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; the \
            region is wrong; expecting 'fr-par'.</Message></Error>";
        assert_eq!(of(minio), region("fr-par"));
        let garage = "<Message>malformed, unexpected scope: 20260101/us-east-1/s3/aws4_request, expected: \
            20260101/garage/s3/aws4_request</Message>";
        assert_eq!(of(garage), region("garage"));
        assert_eq!(of("<Code>ExpiredToken</Code>"), Refusal::StaleKeys);
        assert_eq!(of("<Code>AccessDenied</Code>"), Refusal::Final);
        let locked = "<Code>InvalidRequest</Code><Message>Content-MD5 OR x-amz-checksum- HTTP header is required for Put \
            Object requests with Object Lock parameters</Message>";
        assert_eq!(of(locked), Refusal::WantsDigest);
        let headers = HeaderMap::from_iter([("x-amz-bucket-region".parse().unwrap(), "nl-ams".parse().unwrap())]);
        assert_eq!(refusal(&headers, ""), region("nl-ams"));
        assert_eq!(refusal(&headers, "<Code>AccessDenied</Code>"), Refusal::Final);
    }

    #[test]
    fn full_disks_are_told_from_denied_folders() {
        let local = |kind: io::ErrorKind| {
            let source = Box::new(io::Error::from(kind));
            let at = Place { operation: "writing", name: "x".to_owned(), store: "/k".into() };
            classify(at, object_store::Error::Generic { store: "LocalFileSystem", source })
        };
        assert!(matches!(local(io::ErrorKind::StorageFull), StoreError::Full { .. }));
        assert!(matches!(local(io::ErrorKind::PermissionDenied), StoreError::Denied { .. }));
        assert!(matches!(local(io::ErrorKind::InvalidData), StoreError::Other { .. }));
    }
}

//! What a service's refusal means for whoever reads or writes.

use std::error::Error as _;
use std::io;

use object_store::Error;
use object_store::client::{HttpError, HttpErrorKind};
use omnimap_store::StoreError;

use crate::location::{Location, Service, unusable};

/// The cause of a failure, as far as it can be told from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    NotFound,
    OtherVersion,
    Refused,
    /// Of a range that is not in the object (416).
    NoSuchRange,
    NoRanges,
    TimedOut,
    /// Nobody answers at the address.
    NoServer,
    /// The connection broke while bytes came.
    Broken,
    /// The service told that it is too busy, or failed, again and again.
    Busy,
    Other,
}

/// Of credentials, where the status (400) or the client's kind of error does not tell.
const REFUSALS: [&str; 5] =
    ["ExpiredToken", "InvalidToken", "TokenRefreshRequired", "status code: 401", "status code: 403"];
/// What may be granted later, likewise; the last one is an answer that began well (200) and tells of a failure (S3 completes
/// uploads so).
const PASSING: [&str; 3] = ["RequestTimeout", "status code: 408", "Server returned error response"];

pub(crate) fn kind(error: &Error) -> Kind {
    match error {
        Error::NotFound { .. } => Kind::NotFound,
        Error::Precondition { .. } | Error::NotModified { .. } | Error::AlreadyExists { .. } => {
            Kind::OtherVersion
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => Kind::Refused,
        Error::NotSupported { .. } => Kind::NoRanges,
        _ => {
            let text = error.to_string();
            let http = http_error(error);
            match http {
                Some(HttpErrorKind::Timeout) => Kind::TimedOut,
                Some(HttpErrorKind::Connect) => Kind::NoServer,
                Some(_) => Kind::Broken,
                None if REFUSALS.iter().any(|refusal| text.contains(refusal)) => Kind::Refused,
                None if PASSING.iter().any(|passing| text.contains(passing)) => Kind::Busy,
                None if text.contains("status code: 416") => Kind::NoSuchRange,
                None if text.contains("status code: 412") => Kind::OtherVersion,
                None if text.contains("status code: 5") || text.contains("status code: 429") => Kind::Busy,
                None if text.contains("non-partial response") => Kind::NoRanges,
                None => Kind::Other,
            }
        }
    }
}

fn http_error(error: &Error) -> Option<HttpErrorKind> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(http) = error.downcast_ref::<HttpError>() {
            return Some(http.kind());
        }
        cause = error.source();
    }
    None
}

/// Of an object that is to be opened.
pub(crate) fn at_opening(error: &Error, location: &Location) -> StoreError {
    let open = |kind: io::ErrorKind, text: String| StoreError::Open {
        name: location.name.clone(),
        source: io::Error::new(kind, text),
    };
    match kind(error) {
        Kind::NotFound => {
            open(io::ErrorKind::NotFound, format!("there is no such object ({})", brief(error)))
        }
        Kind::Refused => {
            open(io::ErrorKind::PermissionDenied, format!("{}; {}", brief(error), credentials(location)))
        }
        Kind::NoRanges => no_ranges(location),
        Kind::TimedOut => open(io::ErrorKind::TimedOut, brief(error)),
        _ if location.service == Service::S3 && error.to_string().contains("169.254.") => open(
            io::ErrorKind::PermissionDenied,
            format!("no credentials were found; {}", credentials(location)),
        ),
        _ => open(io::ErrorKind::Other, brief(error)),
    }
}

/// Of a read of `length` bytes of an object that was opened.
pub(crate) fn at_reading(error: &Error, location: &Location, length: u64) -> StoreError {
    let changed = |how: &str| StoreError::Changed { how: how.to_owned() };
    let io = |kind: io::ErrorKind, text: String| StoreError::Io {
        action: "request",
        length,
        source: io::Error::new(kind, text),
    };
    match kind(error) {
        Kind::NotFound => changed("it is not there any more"),
        Kind::OtherVersion => changed("the server has another version of it"),
        Kind::NoSuchRange => changed("it has become shorter"),
        Kind::NoRanges => no_ranges(location),
        Kind::Refused => {
            io(io::ErrorKind::PermissionDenied, format!("{}; {}", brief(error), credentials(location)))
        }
        Kind::TimedOut => io(io::ErrorKind::TimedOut, brief(error)),
        Kind::Broken => io(io::ErrorKind::ConnectionReset, brief(error)),
        Kind::Busy => io(io::ErrorKind::ResourceBusy, brief(error)),
        Kind::NoServer => io(io::ErrorKind::ConnectionRefused, brief(error)),
        Kind::Other => io(io::ErrorKind::Other, brief(error)),
    }
}

/// Of an upload of `length` bytes.
pub(crate) fn at_writing(error: &Error, location: &Location, length: u64) -> StoreError {
    match kind(error) {
        // Of the bucket, or of a directory of a web server.
        Kind::NotFound | Kind::NoRanges | Kind::NoSuchRange => StoreError::Io {
            action: "upload",
            length,
            source: io::Error::new(io::ErrorKind::NotFound, brief(error)),
        },
        _ => at_reading(error, location, length),
    }
}

pub(crate) fn no_ranges(location: &Location) -> StoreError {
    let reason = "its server gives objects only as a whole, no ranges of bytes (RFC 9110, 14); download it, and map the file";
    unusable(&location.name, reason)
}

fn credentials(location: &Location) -> &'static str {
    match location.service {
        Service::S3 => {
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (`aws configure export-credentials --format env`), or \
             AWS_SKIP_SIGNATURE=true for what is public"
        }
        Service::Google => {
            "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or GOOGLE_SKIP_SIGNATURE=true for what is public"
        }
        Service::Azure => {
            "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true for what is public"
        }
        Service::Web => "the URL may need a signature or a password that is valid still",
    }
}

/// The error's text with its causes, without the query of a URL, which may hold a signature.
pub(crate) fn brief(error: &Error) -> String {
    const LENGTH_MAX: usize = 500;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    let words = text.split_inclusive(char::is_whitespace).map(|word| match word.split_once('?') {
        Some((before, after)) if before.contains("://") => {
            let end = after.find(|c: char| c.is_whitespace() || c == ')').unwrap_or(after.len());
            format!("{before}?…{}", &after[end..])
        }
        _ => word.to_owned(),
    });
    let mut text: String = words.collect();
    if let Some((end, _)) = text.char_indices().nth(LENGTH_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_credentials_and_a_busy_service_refuse_is_told_from_what_is_wrong() {
        let told = |text: &str| kind(&Error::Generic { store: "S3", source: text.into() });
        let answer =
            "Error performing PUT https://bucket/key?uploadId=1 - Server returned non-2xx status code:";
        assert_eq!(told(&format!("{answer} 400 Bad Request: <Code>ExpiredToken</Code>")), Kind::Refused);
        assert_eq!(told(&format!("{answer} 403 Forbidden")), Kind::Refused);
        assert_eq!(told(&format!("{answer} 400 Bad Request: <Code>RequestTimeout</Code>")), Kind::Busy);
        assert_eq!(told(&format!("{answer} 503 Slow Down")), Kind::Busy);
        assert_eq!(told("Server returned error response: <Code>InternalError</Code>"), Kind::Busy);
        assert_eq!(told(&format!("{answer} 400 Bad Request: <Code>InvalidPart</Code>")), Kind::Other);
    }
}

//! Completes uploads in parts under a condition, and copies parts within the service: what `object_store` has no call for.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use http::header::{HeaderName, HeaderValue, IF_MATCH};
use http::{Method, Request};
use object_store::aws::AmazonS3;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpRequestBody, HttpResponse, HttpService,
    ReqwestConnector,
};
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::signer::{SignedUrlOptions, Signer};
use object_store::{ClientOptions, Error, Result};

const SIGNED_FOR: Duration = Duration::from_secs(900);

/// The ETags that objects must have when the uploads of these names are completed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Conditions(Arc<Mutex<HashMap<String, HeaderValue>>>);

impl Conditions {
    pub(crate) fn set(&self, upload: &str, tag: &str) {
        if let Ok(tag) = HeaderValue::from_str(tag) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(upload.to_owned(), tag);
        }
    }

    pub(crate) fn forget(&self, upload: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(upload);
    }

    /// The condition of a request, if it completes an upload that has one.
    fn of(&self, request: &HttpRequest) -> Option<HeaderValue> {
        let query = request.uri().query().filter(|_| *request.method() == Method::POST)?;
        let (_, upload) =
            url::form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "uploadId")?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&*upload).cloned()
    }
}

/// Adds the condition after the request was signed: a signature covers the headers that it names (Signature Version 4), and
/// only those of Amazon's own must be among them.
impl HttpConnector for Conditions {
    fn connect(&self, options: &ClientOptions) -> Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(UnderConditions { inner, conditions: self.clone() }))
    }
}

#[derive(Debug)]
struct UnderConditions {
    inner: HttpClient,
    conditions: Conditions,
}

#[async_trait]
impl HttpService for UnderConditions {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if let Some(tag) = self.conditions.of(&request) {
            request.headers_mut().insert(IF_MATCH, tag);
        }
        self.inner.execute(request).await
    }
}

/// What a part is copied from.
pub(crate) struct CopySource<'a> {
    pub(crate) bucket: &'a str,
    pub(crate) tag: &'a str,
    pub(crate) range: Range<u64>,
}

/// Copies a part of an object's present version into an upload of its next, without the bytes coming here (UploadPartCopy).
pub(crate) async fn copy_part(
    client: &AmazonS3,
    http: &HttpClient,
    path: &Path,
    upload: &str,
    number: usize,
    source: CopySource<'_>,
) -> Result<PartId> {
    let failed = |text: String| Error::Generic { store: "S3", source: text.into() };
    let encoded: Vec<String> = path
        .as_ref()
        .split('/')
        .map(|part| {
            url::form_urlencoded::byte_serialize(part.as_bytes()).collect::<String>().replace('+', "%20")
        })
        .collect();
    let headers = [
        ("x-amz-copy-source", format!("{}/{}", source.bucket, encoded.join("/"))),
        ("x-amz-copy-source-range", format!("bytes={}-{}", source.range.start, source.range.end - 1)),
        ("x-amz-copy-source-if-match", source.tag.to_owned()),
    ];
    let query = [("partNumber", (number + 1).to_string()), ("uploadId", upload.to_owned())];
    let mut options = SignedUrlOptions::new().with_query(query);
    let mut request = Request::builder().method(Method::PUT);
    for (name, value) in headers {
        let value = HeaderValue::from_str(&value).map_err(|error| failed(error.to_string()))?;
        options = options.with_signed_header(HeaderName::from_static(name), value.clone());
        request = request.header(name, value);
    }
    let url = client.signed_url_opts(Method::PUT, path, SIGNED_FOR, &options).await?;
    let request =
        request.uri(url.as_str()).body(HttpRequestBody::empty()).map_err(|e| failed(e.to_string()))?;
    let answer = http.execute(request).await.map_err(|error| failed(error.to_string()))?;
    let status = answer.status();
    let body = answer.into_body().bytes().await.map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&body);
    // An answer that begins well may tell of a failure still.
    let tag = text.split_once("<ETag>").and_then(|(_, rest)| rest.split_once("</ETag>"));
    match tag {
        Some((tag, _)) if status.is_success() => {
            // The quotes as XML may have them.
            let quotes = ["&quot;", "&#34;", "&#x22;"];
            let tag = quotes.iter().fold(tag.to_owned(), |tag, quote| tag.replace(quote, "\""));
            Ok(PartId { content_id: tag })
        }
        _ => Err(failed(format!("a part was not copied: {status} {text}"))),
    }
}

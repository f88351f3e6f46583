//! A real S3 server on this machine, over files, and a link that makes it far away.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::{ObjectStoreExt, WriteMultipart};
use omnimap::RemoteOptions;
use omnimap_testkit::SlowLink;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;
use s3s_fs::FileSystem;
use tokio::runtime::Runtime;

const BUCKET: &str = "bucket";
/// One way to a server in another region.
const LATENCY: Duration = Duration::from_millis(30);
const BYTES_PER_SECOND: u64 = 100_000_000;

/// The server; it ends when it is dropped.
pub(crate) struct S3 {
    address: SocketAddr,
    client: AmazonS3,
    runtime: Runtime,
    _directory: tempfile::TempDir,
}

impl S3 {
    pub(crate) fn start() -> S3 {
        // Its client is not ours, which would have done so.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Beside the tests: temporary directories may be memory.
        let beside = std::env::current_exe().unwrap();
        let directory = tempfile::tempdir_in(beside.parent().unwrap()).unwrap();
        std::fs::create_dir(directory.path().join(BUCKET)).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let root = directory.path().to_path_buf();
        runtime.spawn(async move { serve(&root, listener).await });
        let client = AmazonS3Builder::new()
            .with_endpoint(format!("http://{address}"))
            .with_allow_http(true)
            .with_bucket_name(BUCKET)
            .with_access_key_id("key")
            .with_secret_access_key("secret")
            .build()
            .unwrap();
        S3 { address, client, runtime, _directory: directory }
    }

    /// Makes an object, in parts where it is large.
    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let key = Key::from(key);
        self.runtime.block_on(async {
            if bytes.len() < 16 << 20 {
                self.client.put(&key, bytes.to_vec().into()).await.unwrap();
                return;
            }
            let mut upload =
                WriteMultipart::new_with_chunk_size(self.client.put_multipart(&key).await.unwrap(), 8 << 20);
            for part in bytes.chunks(8 << 20) {
                upload.wait_for_capacity(4).await.unwrap();
                upload.write(part);
            }
            upload.finish().await.unwrap();
        });
    }

    /// Does something with a client of the server.
    pub(crate) fn wait<T>(&self, work: impl AsyncFnOnce(&AmazonS3) -> T) -> T {
        self.runtime.block_on(work(&self.client))
    }

    pub(crate) fn get(&self, key: &str) -> Vec<u8> {
        self.runtime
            .block_on(async { self.client.get(&Key::from(key)).await.unwrap().bytes().await.unwrap() })
            .into()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A link over which it is far away.
    pub(crate) fn far(&self) -> SlowLink {
        SlowLink::start(self.address, LATENCY, BYTES_PER_SECOND)
    }

    pub(crate) fn options(&self) -> RemoteOptions {
        options(self.address)
    }
}

/// Options for a server at an address.
pub(crate) fn options(address: SocketAddr) -> RemoteOptions {
    let mut options = RemoteOptions::new();
    options
        .set("aws_endpoint", format!("http://{address}"))
        .set("aws_access_key_id", "key")
        .set("aws_secret_access_key", "secret");
    options
}

pub(crate) fn url(key: &str) -> String {
    format!("s3://{BUCKET}/{key}")
}

async fn serve(root: &Path, listener: TcpListener) {
    let mut builder = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
    builder.set_auth(SimpleAuth::from_single("key", "secret"));
    let service = builder.build();
    let http = Arc::new(Builder::new(TokioExecutor::new()));
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    while let Ok((socket, _)) = listener.accept().await {
        socket.set_nodelay(true).unwrap();
        let (http, service) = (http.clone(), service.clone());
        tokio::spawn(async move { drop(http.serve_connection(TokioIo::new(socket), service).await) });
    }
}

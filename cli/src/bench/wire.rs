//! A thin gRPC client for both sides of a measurement: one HTTP/2 connection, unary calls, nothing
//! between the caller and the frames. A full client takes as much CPU for a call as the servers
//! that are measured, and on a small machine it takes that away from them.
//!
//! Never retries, follows or times out.

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Version};
use prost::Message;
use tokio::net::TcpStream;
use tonic::{Code, Status};

/// Flag and length before each message.
const PREFIX_BYTES: usize = 5;

/// One connection; clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    origin: String,
    requests: SendRequest<Bytes>,
}

impl Connection {
    /// Connects to `http://HOST:PORT`.
    pub(super) async fn open(url: &str) -> Result<Connection> {
        let address = url.strip_prefix("http://").context("no http:// address")?;
        let stream = TcpStream::connect(address).await.with_context(|| url.to_owned())?;
        stream.set_nodelay(true)?;
        let (requests, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move {
            let _ = connection.await; // whoever waits on it is told the error
        });
        Ok(Connection { origin: url.to_owned(), requests })
    }

    /// One call: `path` is `/package.Service/Method`.
    pub(super) async fn unary<A: Message + Default>(
        &self,
        path: &str,
        message: &impl Message,
    ) -> Result<A, Status> {
        let request = Request::post(format!("{}{path}", self.origin))
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut requests = self.requests.clone().ready().await.map_err(broken)?;
        let (response, mut body) = requests.send_request(request, false).map_err(broken)?;
        body.send_data(framed(message), true).map_err(broken)?;
        let (head, body) = response.await.map_err(broken)?.into_parts();
        if let Some(status) = Status::from_header_map(&head.headers) {
            return status_to_result(status).and_then(|()| Err(Status::internal("no message")));
        }
        let (bytes, trailers) = received(body).await?;
        let status = trailers.as_ref().and_then(Status::from_header_map);
        status_to_result(status.ok_or_else(|| Status::internal("no grpc-status"))?)?;
        let message = bytes.get(PREFIX_BYTES..).ok_or_else(|| Status::internal("no message"))?;
        A::decode(message).map_err(|error| Status::internal(error.to_string()))
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0); // not compressed
    bytes.put_u32(length as u32);
    message.encode(&mut bytes).expect("a buffer that grows has room");
    bytes.freeze()
}

/// Everything the peer sends, and its trailers.
async fn received(mut body: RecvStream) -> Result<(Bytes, Option<HeaderMap>), Status> {
    let mut bytes = Bytes::new();
    while let Some(piece) = body.data().await {
        let piece = piece.map_err(broken)?;
        body.flow_control().release_capacity(piece.len()).map_err(broken)?;
        bytes = match bytes.is_empty() {
            true => piece,
            false => [bytes, piece].concat().into(),
        };
    }
    Ok((bytes, body.trailers().await.map_err(broken)?))
}

fn status_to_result(status: Status) -> Result<(), Status> {
    if status.code() == Code::Ok { Ok(()) } else { Err(status) }
}

fn broken(error: h2::Error) -> Status {
    Status::unavailable(error.to_string())
}

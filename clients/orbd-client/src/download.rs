//! Streaming download over the daemon's socket: an HTTP/1.1 GET whose body is read as it arrives.
//!
//! A truncated body is an error: the download is complete only if the body ends as its HTTP framing says.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Maximum length of a response's head, of a line of the chunked framing, and of an error's text, in bytes.
const HEAD_MAX: u64 = 16 << 10;

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The daemon answered with a status other than 200.
    #[error("{message}")]
    Refused {
        /// HTTP status code.
        status: u16,
        /// The daemon's error message.
        message: String,
    },
    /// The connection failed, or the response is not valid HTTP.
    #[error("connection to orbd lost")]
    Lost(#[from] io::Error),
}

/// A response body, read as it arrives.
#[derive(Debug)]
pub struct Download {
    reader: BufReader<UnixStream>,
    framing: Framing,
}

/// Position within the body's HTTP framing.
#[derive(Debug)]
enum Framing {
    /// Inside a body with `Content-Length`; contains the number of bytes left.
    Length(u64),
    /// Inside a chunk; contains the number of bytes left in it.
    Chunk(u64),
    /// The next line is a chunk's size, preceded by the CRLF that ends the previous chunk unless this is the first one.
    Size {
        is_first: bool,
    },
    Done,
}

impl Download {
    /// Requests `target`, a path with its query. `silence_max` is the longest time between two reads of data from the daemon.
    pub fn get(socket: &Path, target: &str, silence_max: Duration) -> Result<Self, DownloadError> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(silence_max))?;
        stream.write_all(
            format!("GET {target} HTTP/1.1\r\nhost: orbd\r\nconnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut reader = BufReader::with_capacity(64 << 10, stream);
        let head = read_head(&mut reader)?;
        let (status, framing) = parse_head(&head).ok_or_else(malformed)?;
        let mut download = Self { reader, framing };
        if status == 200 {
            return Ok(download);
        }
        let mut message = String::new();
        (&mut download).take(HEAD_MAX).read_to_string(&mut message)?;
        Err(DownloadError::Refused {
            status,
            message: message.trim_end().to_owned(),
        })
    }

    /// Reads a line of the chunked framing, without its CRLF.
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        (&mut self.reader).take(HEAD_MAX).read_line(&mut line)?;
        line.strip_suffix("\r\n")
            .map(str::to_owned)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Returns how many bytes of the body can be read before the next framing line; zero at the end of the body.
    fn available(&mut self) -> io::Result<u64> {
        loop {
            match self.framing {
                Framing::Length(left) | Framing::Chunk(left) if left > 0 => return Ok(left),
                Framing::Length(_) | Framing::Done => return Ok(0),
                Framing::Chunk(_) => self.framing = Framing::Size { is_first: false },
                Framing::Size { is_first } => {
                    if !is_first && !self.line()?.is_empty() {
                        return Err(malformed());
                    }
                    let line = self.line()?;
                    let size = line.split(';').next().unwrap_or_default().trim();
                    match u64::from_str_radix(size, 16).map_err(|_| malformed())? {
                        0 => self.framing = Framing::Done,
                        size => self.framing = Framing::Chunk(size),
                    }
                }
            }
        }
    }
}

impl Read for Download {
    /// Reads available bytes. `Ok(0)` means that the body is complete; a connection that ends earlier is an error.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.available()?;
        let most = usize::try_from(available).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let read = self.reader.read(&mut buffer[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Framing::Length(left) | Framing::Chunk(left) = &mut self.framing {
            *left -= read as u64;
        }
        Ok(read)
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "orbd's answer is not valid HTTP")
}

/// Reads the status line and the headers, including the empty line.
fn read_head(reader: &mut BufReader<UnixStream>) -> io::Result<String> {
    let mut head = String::new();
    let mut limited = reader.take(HEAD_MAX);
    while !head.ends_with("\r\n\r\n") {
        if limited.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(head)
}

/// Returns the status code and the body's framing; `None` if the head is malformed or gives no length of the body.
fn parse_head(head: &str) -> Option<(u16, Framing)> {
    let mut lines = head.split("\r\n");
    let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    let mut framing = None;
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") {
            framing = value
                .eq_ignore_ascii_case("chunked")
                .then_some(Framing::Size { is_first: true });
        } else if name.eq_ignore_ascii_case("content-length") {
            framing = value.parse().ok().map(Framing::Length);
        }
    }
    Some((status, framing?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Downloads from a fake daemon that sends `answer` and closes the connection.
    fn read(answer: &'static [u8]) -> Result<Vec<u8>, DownloadError> {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let daemon = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut request = String::new();
            let mut reader = BufReader::new(stream.try_clone().expect("a copy"));
            while !request.ends_with("\r\n\r\n") {
                reader.read_line(&mut request).expect("a line");
            }
            stream.write_all(answer).expect("it reads");
            request
        });
        let mut body = Vec::new();
        let read = Download::get(&socket, "/x?y=z", Duration::from_secs(30))
            .and_then(|mut download| Ok(download.read_to_end(&mut body)?));
        let request = daemon.join().expect("no panic");
        assert!(request.starts_with("GET /x?y=z HTTP/1.1\r\n"), "{request}");
        read.map(|_| body)
    }

    #[test]
    fn chunked_body_is_read_to_its_end() {
        let body = read(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n, a\r\nworld\r\n0\r\n\r\n",
        );
        assert_eq!(body.expect("whole"), b"hello, a\r\nworld");
    }

    #[test]
    fn body_of_a_known_length_is_read_to_its_end() {
        let body = read(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello");
        assert_eq!(body.expect("whole"), b"hello");
    }

    #[test]
    fn truncated_body_is_an_error_at_any_length() {
        let whole = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n5\r\nworld\r\n0\r\n";
        for end in 0..whole.len() - 3 {
            let error = read(&whole[..end]).expect_err("broken off");
            assert!(matches!(error, DownloadError::Lost(_)), "cut at {end}: {error:?}");
        }
        let short = read(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello");
        assert!(matches!(short, Err(DownloadError::Lost(_))), "{short:?}");
    }

    #[test]
    fn refusal_carries_status_and_message() {
        let refused = read(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 9\r\n\r\nbad thing");
        let Err(DownloadError::Refused { status, message }) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!((status, message.as_str()), (400, "bad thing"));
    }

    #[test]
    fn response_that_is_not_http_is_an_error() {
        for answer in [
            b"{\"jsonrpc\":\"2.0\"}\r\n\r\n".as_slice(),
            b"HTTP/1.1 200 OK\r\n\r\nbody without a length",
        ] {
            let error = read(answer).expect_err("not HTTP");
            assert!(matches!(error, DownloadError::Lost(_)), "{error:?}");
        }
    }
}

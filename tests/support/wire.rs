//! A raw connection, for requests that the client library would never send.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use super::PATIENCE;

/// A connection to the daemon, byte by byte.
pub(crate) struct Wire {
    pub(crate) stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Wire {
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("the daemon takes connections");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        let reader = BufReader::new(stream.try_clone().expect("a second descriptor"));
        Self { stream, reader }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the daemon reads");
    }

    /// Sends a request without waiting for its answer.
    pub(crate) fn request(&mut self, id: u64, method: &str, params: &Value) {
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.send(format!("{request}\n"));
    }

    /// Reads one line of JSON; `None` if the daemon closed the connection.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).expect("JSON")),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no line received: {error}"),
        }
    }

    /// Sends a line and reads one line.
    pub(crate) fn exchange(&mut self, line: &str) -> Value {
        self.send(line);
        self.send("\n");
        self.receive().expect("an answer")
    }

    /// Sends a request and reads until its answer.
    pub(crate) fn call(&mut self, id: u64, method: &str, params: &Value) -> Value {
        self.request(id, method, params);
        self.until(|message| message["id"] == id)
    }

    /// Reads until a message matches.
    pub(crate) fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.receive().expect("the message that is waited for");
            if wanted(&message) {
                return message;
            }
        }
    }

    /// Closes the sending direction.
    pub(crate) fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).expect("it was open");
    }

    /// Reads the head of an HTTP answer, with its empty line.
    pub(crate) fn head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            let read = self.reader.read_line(&mut head).expect("an HTTP answer");
            assert_ne!(read, 0, "closed after {head:?}");
        }
        head
    }

    /// Reads one line of text; `None` if the daemon closed the connection.
    pub(crate) fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line).expect("a line");
        (read > 0).then_some(line)
    }

    /// Waits until the daemon closes the connection; returns false if it sends anything.
    pub(crate) fn is_closed(&mut self) -> bool {
        match self.reader.fill_buf() {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }

    /// Reads exactly `count` bytes.
    pub(crate) fn exactly(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.reader.read_exact(&mut bytes).expect("so many bytes");
        bytes
    }
}

//! The raw server that orbd is compared with: it answers everything that it reads with the same bytes.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};

/// First argument of this program when it is an echo server.
pub(crate) const FLAG: &str = "--echo";

/// How it serves many connections. A daemon is compared with the better of the first two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A thread for each connection.
    Threads,
    /// One thread that polls.
    Poll,
    /// One thread that writes to all connections when it reads from one.
    FanOut,
}

/// A running echo server. It is killed when dropped.
pub(crate) struct Echo {
    child: Child,
    socket: PathBuf,
}

impl Echo {
    /// Starts a server that answers with these bytes.
    pub(crate) fn start(folder: &Path, name: &str, kind: Kind, answer: &[u8]) -> Self {
        let socket = folder.join(name);
        let file = folder.join(format!("{name}.answer"));
        std::fs::write(&file, answer).expect("written");
        let own = std::env::current_exe().expect("this program has a path");
        let child = Command::new(own)
            .arg(FLAG)
            .args([&socket, &file])
            .arg(match kind {
                Kind::Threads => "threads",
                Kind::Poll => "poll",
                Kind::FanOut => "fan-out",
            })
            .stdin(Stdio::null())
            .spawn()
            .expect("this program");
        while UnixStream::connect(&socket).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { child, socket }
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).expect("it listens")
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Serves until killed.
pub(crate) fn serve(words: &[String]) {
    let [socket, file, kind] = words else {
        panic!("socket, file, kind");
    };
    let answer: &'static [u8] = std::fs::read(file).expect("the answer").leak();
    let listener = UnixListener::bind(socket).expect("a socket");
    match kind.as_str() {
        "poll" => return serve_by_poll(&listener, answer),
        "fan-out" => return fan_out(&listener, answer),
        _ => {}
    }
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || serve_one(stream, answer));
    }
}

fn serve_one(mut stream: UnixStream, answer: &[u8]) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).is_ok_and(|read| read > 0) {
        if stream.write_all(answer).is_err() {
            return;
        }
    }
}

/// The first connection sends, and all others get the answer.
fn fan_out(listener: &UnixListener, answer: &[u8]) {
    // The program that starts this one connects once to check that it listens.
    let mut streams: Vec<UnixStream> = listener.incoming().flatten().skip(1).take(1).collect();
    let mut buffer = [0; 4096];
    loop {
        let mut ready = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(&streams[0], PollFlags::IN),
        ];
        poll(&mut ready, None).expect("poll");
        let [connects, speaks] = ready.map(|fd| !fd.revents().is_empty());
        // Accept first, so that no waiting connection is left out.
        if connects {
            streams.extend(listener.accept().map(|(stream, _)| stream));
        } else if speaks {
            if !streams[0].read(&mut buffer).is_ok_and(|read| read > 0) {
                return;
            }
            for stream in &mut streams[1..] {
                stream.write_all(answer).expect("it reads");
            }
        }
    }
}

fn serve_by_poll(listener: &UnixListener, answer: &[u8]) {
    let mut streams: Vec<UnixStream> = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let mut ready = vec![PollFd::new(listener, PollFlags::IN)];
        ready.extend(streams.iter().map(|stream| PollFd::new(stream, PollFlags::IN)));
        poll(&mut ready, None).expect("poll");
        let is_ready: Vec<bool> = ready.iter().map(|fd| !fd.revents().is_empty()).collect();
        let mut at = 0;
        streams.retain_mut(|stream| {
            at += 1;
            !is_ready[at]
                || (stream.read(&mut buffer).is_ok_and(|read| read > 0) && stream.write_all(answer).is_ok())
        });
        if is_ready[0]
            && let Ok((stream, _)) = listener.accept()
        {
            streams.push(stream);
        }
    }
}

//! What any receiver must do and no more: read and find line ends, or take datagrams. A process of its own, so that its
//! processor time is told like the others'.

use std::hint::black_box;
use std::io::Read;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::sync::Arc;
use std::thread;

use memchr::memchr_iter;
use rustls::ServerConnection;
use rustls::Stream;
use socket2::SockRef;

use crate::Result;

const READ_BYTES: usize = 64 * 1024;
/// As large as the relay asks for.
pub const RECEIVE_BUFFER_BYTES: usize = 8 * 1024 * 1024;

/// The child's side: says its port on standard output, then reads.
pub fn run(kind: &str) -> Result<()> {
    match kind {
        "tcp" => serve(|mut stream| drain(&mut stream)),
        "tls" => {
            let config = crate::load::server_config()?;
            serve(move |mut stream| {
                let Ok(mut session) = ServerConnection::new(Arc::clone(&config)) else {
                    return;
                };
                drain(&mut Stream::new(&mut session, &mut stream));
            })
        }
        "udp" => {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
            println!("{}", socket.local_addr()?.port());
            let mut buffer = vec![0; READ_BYTES];
            loop {
                black_box(socket.recv(&mut buffer)?);
            }
        }
        other => Err(format!("there is no bare loop for {other}").into()),
    }
}

fn serve(read: impl Fn(TcpStream) + Clone + Send + 'static) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?.port());
    for stream in listener.incoming().flatten() {
        let read = read.clone();
        thread::spawn(move || read(stream));
    }
    Ok(())
}

fn drain(from: &mut impl Read) {
    let mut buffer = vec![0; READ_BYTES];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        for end in memchr_iter(b'\n', &buffer[..read]) {
            black_box(end);
        }
    }
}

/// The parent's side: the child and the port it listens on.
pub fn spawn(kind: &str) -> Result<(Child, u16)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--bare", kind])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    let out = child.stdout.as_mut().ok_or("it has no output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut said)?;
    Ok((child, said.trim().parse()?))
}

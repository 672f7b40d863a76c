//! One SMTP connection: a command out, its one answer in, both bounded in bytes and time.
//!
//! The rule that makes everything else safe: an answer belongs to the command before it. Bytes that lie there before a
//! command is written belong to nothing, so they end the connection; and a dialogue that failed is dropped, never used again.

use std::fmt::Display;
use std::io;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;
use tracing::trace;

use super::class::Fault;
use crate::channel::Attempt;
use crate::secret::Redactor;

/// The longest answer that is read, with all its lines.
const MAX_REPLY_BYTES: usize = 16 * 1024;

/// A TCP connection, or TLS over it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// An answer: the code, and the text of each line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reply {
    pub(super) code: u16,
    pub(super) lines: Vec<String>,
}

impl Reply {
    /// The enhanced status (RFC 3463) that begins the text, if its class agrees with the code (RFC 2034, 4).
    pub(super) fn enhanced(&self) -> Option<(u16, u16, u16)> {
        let word = self.lines.first()?.split(' ').next()?;
        let mut parts = word.splitn(3, '.').map(|part| {
            let digits = (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten()
        });
        let status = (parts.next()??, parts.next()??, parts.next()??);
        (status.0 == self.code / 100).then_some(status)
    }

    /// The answer on one line, as the peer wrote it.
    pub(super) fn text(&self) -> String {
        format!("{} {}", self.code, self.lines.join(" "))
    }

    /// The same answer, fit to be kept.
    pub(super) fn cleaned(self, redactor: &Redactor) -> Self {
        let lines = self.lines.iter().map(|line| redactor.clean(line));
        Self {
            code: self.code,
            lines: lines.collect(),
        }
    }

    /// This answer if it has the code, else the fault of not having it.
    pub(super) fn expect(self, code: u16) -> Result<Self, Fault> {
        if self.code == code {
            Ok(self)
        } else {
            Err(Fault::Answer(self))
        }
    }
}

/// A connection, between two commands.
pub(super) struct Dialogue {
    stream: Box<dyn Stream>,
    unread: Vec<u8>,
}

impl Dialogue {
    pub(super) fn new(stream: impl Stream + 'static) -> Self {
        Self {
            stream: Box::new(stream),
            unread: Vec::new(),
        }
    }

    /// Reads the greeting.
    pub(super) async fn greeting(
        &mut self,
        attempt: &Attempt<'_>,
        limit: Duration,
    ) -> Result<Reply, Fault> {
        self.answer(attempt, limit).await
    }

    /// Says a command, which brings its own line end, and reads its answer.
    pub(super) async fn say(
        &mut self,
        attempt: &Attempt<'_>,
        command: impl Display,
        limit: Duration,
    ) -> Result<Reply, Fault> {
        let command = command.to_string();
        attempt
            .transcript
            .line(|| format!("> {}", attempt.redactor.clean(&command)));
        self.write(command.as_bytes(), limit).await?;
        self.answer(attempt, limit).await
    }

    /// Says a line that holds a secret; the transcript gets `shown`.
    pub(super) async fn say_secret(
        &mut self,
        attempt: &Attempt<'_>,
        line: &[u8],
        shown: &str,
        limit: Duration,
    ) -> Result<Reply, Fault> {
        attempt.transcript.line(|| format!("> {shown}"));
        self.write(line, limit).await?;
        self.answer(attempt, limit).await
    }

    /// Sends a message without its final dot, so that the peer can't have taken it yet.
    pub(super) async fn content(
        &mut self,
        attempt: &Attempt<'_>,
        message: &[u8],
        limit: Duration,
    ) -> Result<(), Fault> {
        attempt.transcript.line(|| {
            format!(
                "> (the message, {} bytes, and the final dot)",
                message.len()
            )
        });
        self.write(&transparent(message), limit).await?;
        self.nothing_unread()
    }

    /// Sends the final dot, and reads the answer to it.
    pub(super) async fn final_dot(
        &mut self,
        attempt: &Attempt<'_>,
        limit: Duration,
        answer: Duration,
    ) -> Result<Reply, Fault> {
        self.write(b".\r\n", limit).await?;
        self.answer(attempt, answer).await
    }

    /// Says good-bye, without waiting longer than this for it to matter.
    pub(super) async fn quit(mut self, limit: Duration) {
        let farewell = async {
            self.write(b"QUIT\r\n", limit).await?;
            self.read_reply().await?;
            self.stream.shutdown().await.map_err(Fault::Lost)
        };
        // The connection ends either way, and nobody waits for how.
        drop(timeout(limit, farewell).await);
    }

    /// The bare connection, to be wrapped in TLS. Whatever follows the last answer was not protected by TLS and is refused.
    pub(super) fn into_stream(mut self) -> Result<Box<dyn Stream>, Fault> {
        self.nothing_unread()?;
        Ok(self.stream)
    }

    /// Whether everything the peer said was asked for.
    pub(super) fn in_step(&self) -> bool {
        self.unread.is_empty()
    }

    /// Also looks at what has arrived and was not read yet.
    fn nothing_unread(&mut self) -> Result<(), Fault> {
        if self.in_step() {
            match self.stream.read_buf(&mut self.unread).now_or_never() {
                None => return Ok(()),
                Some(Ok(0)) => return Err(Fault::Lost(io::ErrorKind::UnexpectedEof.into())),
                Some(Ok(_)) => {}
                Some(Err(e)) => return Err(Fault::Lost(e)),
            }
        }
        Err(Fault::Garbled("an answer that nobody had asked for"))
    }

    async fn write(&mut self, bytes: &[u8], limit: Duration) -> Result<(), Fault> {
        self.nothing_unread()?;
        let write = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        match timeout(limit, write).await {
            Ok(written) => written.map_err(Fault::Lost),
            Err(_) => Err(Fault::Slow(limit)),
        }
    }

    async fn answer(&mut self, attempt: &Attempt<'_>, limit: Duration) -> Result<Reply, Fault> {
        let reply = match timeout(limit, self.read_reply()).await {
            Ok(reply) => reply?,
            Err(_) => return Err(Fault::Slow(limit)),
        };
        trace!(code = reply.code, "The relay answered {}", reply.code);
        for line in &reply.lines {
            attempt.transcript.line(|| {
                let line = format!("{} {line}", reply.code);
                format!("< {}", attempt.redactor.clean(&line))
            });
        }
        Ok(reply)
    }

    async fn read_reply(&mut self) -> Result<Reply, Fault> {
        let mut left = MAX_REPLY_BYTES;
        let mut lines = Vec::new();
        let mut first = None;
        loop {
            let line = self.read_line(&mut left).await?;
            let (code, last, text) = reply_line(&line).ok_or(NO_REPLY)?;
            if *first.get_or_insert(code) != code {
                return Err(NO_REPLY);
            }
            lines.push(text);
            if last {
                return Ok(Reply { code, lines });
            }
        }
    }

    async fn read_line(&mut self, left: &mut usize) -> Result<Vec<u8>, Fault> {
        let mut seen = 0;
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.unread[seen..]) {
                let line: Vec<u8> = self.unread.drain(..=seen + at).collect();
                *left = left.checked_sub(line.len()).ok_or(TOO_LONG)?;
                return Ok(line);
            }
            seen = self.unread.len();
            if seen > *left {
                return Err(TOO_LONG);
            }
            match self.stream.read_buf(&mut self.unread).await {
                Ok(0) => return Err(Fault::Lost(io::ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(e) => return Err(Fault::Lost(e)),
            }
        }
    }
}

const NO_REPLY: Fault = Fault::Garbled("something that is not SMTP");
const TOO_LONG: Fault = Fault::Garbled("an answer without end");

/// Code, whether it is the last line, text.
fn reply_line(line: &[u8]) -> Option<(u16, bool, String)> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (code, rest) = line.split_at_checked(3)?;
    if !matches!(code, [b'2'..=b'5', b'0'..=b'9', b'0'..=b'9']) {
        return None;
    }
    let code = code.iter().fold(0, |n, b| n * 10 + u16::from(b - b'0'));
    let (last, text) = match rest.split_first() {
        None => (true, rest),
        Some((b' ', text)) => (true, text),
        Some((b'-', text)) => (false, text),
        Some(_) => return None,
    };
    Some((code, last, String::from_utf8_lossy(text).into_owned()))
}

/// A line that begins with a dot gets a second one (RFC 5321, 4.5.2); the last line is ended, ready for the final dot.
fn transparent(message: &[u8]) -> Vec<u8> {
    let mut wire = Vec::with_capacity(message.len() + 64);
    for line in message.split_inclusive(|&b| b == b'\n') {
        if line.starts_with(b".") {
            wire.push(b'.');
        }
        wire.extend_from_slice(line);
    }
    if !wire.ends_with(b"\r\n") {
        wire.extend_from_slice(b"\r\n");
    }
    wire
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(code: u16, text: &str) -> Reply {
        Reply {
            code,
            lines: vec![text.to_owned()],
        }
    }

    #[tokio::test]
    async fn an_answer_is_the_same_in_one_piece_and_byte_by_byte() {
        let text = b"250-one\r\n250-\n250\r\n";
        for buffer in [1, 2, 7, 1024] {
            let (near, mut far) = tokio::io::duplex(buffer);
            let mut dialogue = Dialogue::new(near);
            let (reply, sent) = tokio::join!(dialogue.read_reply(), far.write_all(text));
            sent.unwrap();
            let reply = reply.unwrap();
            assert_eq!(
                (reply.code, reply.lines),
                (250, vec!["one".to_owned(), String::new(), String::new()])
            );
            assert!(dialogue.in_step());
        }
    }

    #[test]
    fn a_line_that_begins_with_a_dot_gets_a_second_one() {
        assert_eq!(
            transparent(b".\r\na.b\r\n..c\r\n.d"),
            b"..\r\na.b\r\n...c\r\n..d\r\n"
        );
        assert_eq!(transparent(b"a\r\n"), b"a\r\n");
    }

    #[tokio::test]
    async fn what_came_unasked_ends_the_dialogue_before_anything_is_said() {
        let limit = Duration::from_secs(5);
        for (unasked, is_garbled) in [(&b"250 ok\r\n"[..], true), (b"", false)] {
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let mut dialogue = Dialogue::new(ours);
            dialogue.write(b"NOOP\r\n", limit).await.unwrap();
            let mut said = [0; 6];
            theirs.read_exact(&mut said).await.unwrap();
            theirs.write_all(unasked).await.unwrap();
            theirs.shutdown().await.unwrap();
            let fault = dialogue.write(b"MAIL\r\n", limit).await.unwrap_err();
            assert_eq!(matches!(fault, Fault::Garbled(_)), is_garbled, "{fault:?}");
            drop(dialogue);
            assert_eq!(theirs.read(&mut said).await.unwrap(), 0);
        }
    }

    #[test]
    fn an_enhanced_status_agrees_with_its_code() {
        assert_eq!(reply(550, "5.1.1 unknown").enhanced(), Some((5, 1, 1)));
        assert_eq!(reply(550, "5.7.606 no").enhanced(), Some((5, 7, 606)));
        for (code, text) in [
            (550, "4.7.1 no"),
            (550, "no such user"),
            (550, "5.1 no"),
            (550, "5.1.1.1 no"),
            (550, "5..1 no"),
            (550, "5.1.+1 no"),
            (550, "192.0.2.1 no"),
            (550, ""),
        ] {
            assert_eq!(reply(code, text).enhanced(), None, "{text}");
        }
    }

    #[test]
    fn a_reply_line_is_a_code_and_a_text() {
        assert_eq!(
            reply_line(b"250-a b\r\n"),
            Some((250, false, "a b".to_owned()))
        );
        assert_eq!(
            reply_line(b"250 \xff\r\n"),
            Some((250, true, "\u{fffd}".to_owned()))
        );
        assert_eq!(reply_line(b"250\n"), Some((250, true, String::new())));
        for wrong in [
            &b"\r\n"[..],
            b"25\r\n",
            b"2500 a\r\n",
            b"150 a\r\n",
            b"650 a\r\n",
            b"HTTP/1.1 400\r\n",
        ] {
            assert_eq!(reply_line(wrong), None);
        }
    }
}

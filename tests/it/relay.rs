//! The whole relay, through its sockets: a log line goes in, a mail with the code comes out.

use crate::support::postfix::PASSWORD;
use crate::support::postfix::Postfix;
use crate::support::postfix::USERNAME;
use crate::support::relay::BASE;
use crate::support::relay::Relay;
use crate::support::relay::smtp_channel;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::smtp_sink::Setup;
use crate::support::until;

const ROUTE: &str = "[[route]]\nto = [\"mail\"]\n";

/// Head and body; soft line ends are joined, so that a code is in one piece.
fn read(mail: &str) -> (String, String) {
    let mail = mail.replace("\r\n", "\n").replace("=\n", "");
    let (head, body) = mail.split_once("\n\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Both parts hold the code, and no header does.
fn assert_brings(mail: &str, code: &str) {
    let (head, body) = read(mail);
    assert!(!head.contains(code), "{head}");
    let (text, html) = body.split_once("text/html").unwrap();
    assert!(text.contains(code), "{text}");
    assert!(html.contains(code), "{html}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_by_udp_and_one_by_tcp_become_a_mail_each() {
    let sink = Setup::new().start().await;
    let config = format!("{BASE}{}{ROUTE}", smtp_channel(sink.address.port()));
    tokio::task::block_in_place(|| {
        let mut relay = Relay::start(&config);
        relay.send_udp(&Event::code(1, "alice").line());
        relay.send_tcp(&Event::code(2, "bob").counted());
        let taken = until("two mails", || {
            let taken = sink.seen().taken;
            (taken.len() == 2).then_some(taken)
        });
        for (user, number) in [("alice", 1), ("bob", 2)] {
            let to = format!("{user}@example.com");
            let mail = taken.iter().find(|mail| mail.to == [to.as_str()]).unwrap();
            assert_eq!(mail.from, "servicedesk@example.com");
            assert_brings(&mail.content, &code(number));
        }
        until("both to be settled", || {
            (relay.states() == ["accepted", "accepted"]).then_some(())
        });
        assert_eq!(relay.stop(), 0);
        let log = relay.logged();
        for secret in [code(1), code(2)] {
            assert!(!log.contains(&secret));
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_activation_reaches_a_mailbox_through_a_real_mail_relay() {
    let postfix = Postfix::start().await;
    let channel = format!(
        "[channel.mail]\ntype = \"smtp\"\nhost = \"127.0.0.1\"\nport = {}\nca_file = \"{}\"\n\
         auth = \"password\"\nusername = \"{USERNAME}\"\npassword = \"{PASSWORD}\"\n\
         from = \"IT Service Desk <servicedesk@example.com>\"\n",
        postfix.submission,
        postfix.ca.display(),
    );
    let config = format!("{BASE}{channel}{ROUTE}");
    let relay = tokio::task::block_in_place(|| {
        let relay = Relay::start(&config);
        relay.send_tcp(&Event::code(3, "alice").counted());
        relay
    });
    let mails = postfix.mails("alice", 1).await;
    assert_brings(&mails[0], &code(3));
    tokio::task::block_in_place(|| {
        until("it to be settled", || {
            (relay.states() == ["accepted"]).then_some(())
        });
        drop(relay);
    });
}

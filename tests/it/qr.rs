//! qr

use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ftm_relay::channel::qr;
use ftm_relay::template::TEST_CODE;

use crate::support::relay::Relay;

/// The mail that `send-test` writes with these keys of the channel.
fn mail(keys: &str) -> String {
    let config = format!(
        "[[listen]]\ntransport = \"udp\"\naddress = \"127.0.0.1:0\"\n\
         [recipients]\ndomains = [\"example.com\"]\n\
         [[directory]]\ntype = \"pattern\"\nemail = \"{{user}}@example.com\"\n\
         [channel.mail]\ntype = \"file\"\npath = \"mail\"\n{keys}\n\
         [[route]]\nto = [\"mail\"]\n"
    );
    let relay = Relay::prepare(&config);
    let to = [
        "send-test",
        "--channel",
        "mail",
        "--to",
        "alice@example.com",
    ];
    assert_eq!(relay.cli(&to).status.code(), Some(0));
    let (_, mail) = Relay::files(&relay.dir.path().join("mail")).remove(0);
    String::from_utf8(mail).unwrap()
}

/// What a scanner reads in a picture.
pub fn scan(png: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qr.png");
    std::fs::write(&path, png).unwrap();
    let read = Command::new("zbarimg")
        .args(["--quiet", "--raw"])
        .arg(&path)
        .output()
        .expect("zbarimg of the package zbar-tools");
    String::from_utf8(read.stdout)
        .unwrap()
        .trim_end()
        .to_owned()
}

#[test]
fn a_scanner_reads_the_code_and_nothing_else() {
    let long = "GEAD2IZEHWDN2SLTTWIMMFX4FDUFZUSRKGBSL6NUEHTA3IRB6DAG77HOFUCCSFW4";
    for code in ["EEIOTCU3LENEDJMR", long] {
        assert_eq!(scan(&qr::png(code).unwrap()), code);
    }
}

#[test]
fn a_mail_shows_the_image_only_where_it_is_wanted() {
    let mail_with = mail("qr = true");
    let heads = [
        "multipart/alternative",
        "text/plain",
        "multipart/related",
        "text/html",
        "image/png",
    ];
    let mut rest = mail_with.as_str();
    for head in heads {
        rest = rest
            .split_once(&format!("Content-Type: {head}"))
            .unwrap_or_else(|| panic!("{head} in its place in {mail_with}"))
            .1;
    }
    for head in [
        "Content-ID: <activation-code>",
        "Content-Disposition: inline",
    ] {
        assert!(mail_with.contains(head), "{head} in {mail_with}");
    }
    let image = rest.split("\r\n\r\n").nth(1).unwrap();
    let image = image.split("\r\n--").next().unwrap().replace("\r\n", "");
    assert_eq!(scan(&STANDARD.decode(image).unwrap()), TEST_CODE);
    let html = mail_with.replace("=\r\n", "").replace("=3D", "=");
    assert!(html.contains("src=\"cid:activation-code\""), "{html}");
    assert!(
        html.contains("alt=\"The activation code as a QR code\""),
        "{html}"
    );

    let mail_without = mail("");
    assert!(!mail_without.contains("image/png") && !mail_without.contains("cid:"));
    let notice = mail("qr = true\nreveal = \"notice\"");
    assert!(!notice.contains("image/png"), "{notice}");
}

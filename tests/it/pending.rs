//! Tokens that wait for their phone: `resend`, the reminder, and what the page shows.

use serde_json::Value;

use crate::inquiry::Scene;
use crate::inquiry::cases;
use crate::inquiry::later;
use crate::inquiry::masked;
use crate::inquiry::story;
use crate::inquiry::trace;
use crate::support::fortigate;
use crate::support::fortigate::Fault;
use crate::support::fortigate::Shown;
use crate::support::relay::Relay;
use crate::support::samples::Event;
use crate::support::samples::code;
use crate::support::until;

/// Exit code and what was said.
fn resend(relay: &Relay, args: &[&str]) -> (i32, String) {
    let done = relay.cli(&[&["resend"], args].concat());
    let said = [done.stdout, done.stderr].concat();
    (
        done.status.code().unwrap(),
        String::from_utf8(said).unwrap(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn resend_fetches_the_current_code_and_sends_it() {
    let scene = Scene::new().await;
    let relay = scene.start("");
    let done = relay.cli(&["resend", "EXAMPLE\\alice", "--json"]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let said: Value = serde_json::from_slice(&done.stdout).unwrap();
    assert_eq!(
        (&said["id"], &said["user"], &said["token"]),
        (&"A1".into(), &"alice".into(), &fortigate::token(1).into())
    );
    let sent = scene.first_sent();
    assert_eq!(sent["code"], code(1));
    assert_eq!(sent["recipient"]["email"], "alice@example.com");
    assert!(trace(&story(&relay, "A1")).contains("asked by `resend`"));
    // As often as somebody asks.
    let (status, said) = resend(&relay, &["alice"]);
    assert_eq!(status, 0, "{said}");
    assert!(
        said.contains("A2: the code of alice") && said.contains("goes out again"),
        "{said}"
    );
    until("the second", || (scene.sent().len() == 2).then_some(()));
    assert!(!relay.logged().contains(&code(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn resend_says_why_it_sends_nothing() {
    let scene = Scene::new().await;
    let relay = scene.start("");
    let refused = |args: &[&str], why: &str| {
        let (status, said) = resend(&relay, args);
        assert!(status == 1 && said.contains(why), "{status} {said}");
        assert!(!said.contains(&code(1)));
    };
    refused(
        &["mallory"],
        "no device that was asked knows a token of mallory",
    );
    refused(
        &["alice", "--device", "FGT-9"],
        "no [[device]] with `api` is called FGT-9",
    );
    refused(&["alice", "--vdom", "guests"], "guests");
    {
        let mut state = scene.gate.state();
        state.add_token(2, later(48));
        state.add_admin("alice", 2, "alice@example.com");
    }
    refused(&["alice"], "say which one");
    scene.gate.state().activate(2);
    scene.gate.state().shown = Shown::Asterisks;
    refused(&["alice"], "asterisks");
    scene.gate.state().shown = Shown::Clear;
    scene.gate.state().activate(1);
    refused(&["alice"], "activated by a phone already");
    scene.gate.state().add_token(3, later(-1));
    scene.gate.state().add_user("carol", 3, "carol@example.com");
    refused(&["carol"], "has expired");
    scene.gate.state().fault = Some(Fault::Status(503));
    refused(&["carol"], "503");
    assert!(scene.sent().is_empty());
    assert!(relay.queue().is_empty(), "nothing was kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn resend_needs_a_relay_that_runs_and_a_device_with_an_api() {
    let scene = Scene::new().await;
    let mut relay = scene.start("");
    relay.kill();
    let (status, said) = resend(&relay, &["alice"]);
    assert!(
        status == 1 && said.contains("no relay runs"),
        "{status} {said}"
    );
    relay.configure(&scene.config("").replace(&scene.gate.device(), ""));
    relay.run();
    let (status, said) = resend(&relay, &["alice"]);
    assert!(
        status == 1 && said.contains("no [[device]] has `api`"),
        "{status} {said}"
    );
    std::fs::remove_file(relay.config()).unwrap();
    assert_eq!(resend(&relay, &["alice"]).0, 78);
}

#[tokio::test(flavor = "multi_thread")]
async fn resend_is_held_by_the_limit_for_one_person() {
    let scene = Scene::new().await;
    let config = scene.config("");
    let relay = Relay::start(&format!("{config}[limits]\nper_person = \"1/h\"\n"));
    assert_eq!(resend(&relay, &["alice"]).0, 0);
    scene.first_sent();
    assert_eq!(resend(&relay, &["alice"]).0, 0);
    until("the second to be held", || {
        (cases(&relay).contains(&"needs-attention".to_owned())).then_some(())
    });
    assert_eq!(scene.sent().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_reminded_once_before_the_code_expires() {
    let scene = Scene::new().await;
    {
        let mut state = scene.gate.state();
        for (n, user, hours) in [(2, "bob", 23), (3, "carol", 23), (4, "dave", -1)] {
            state.add_token(n, later(hours));
            state.add_user(user, n, &format!("{user}@example.com"));
        }
        state.activate(3);
    }
    let config = scene.config("") + "[reminder]\nbefore = \"24h\"\n";
    let mut relay = Relay::start(&config);
    let sent = scene.first_sent();
    assert_eq!(
        (&sent["user"], &sent["code"]),
        (&"bob".into(), &code(2).into()),
        "alice has 48 h left, carol's phone has taken hers, dave's is over"
    );
    until("it to be settled", || {
        (cases(&relay) == ["accepted"]).then_some(())
    });
    for _ in 0..2 {
        relay.stop();
        relay.run();
        until("the device to be asked", || {
            relay.get("/").1.contains("FTKMOB0000000002").then_some(())
        });
    }
    // A code of another event comes out after whatever the rounds had put before it.
    relay.send_udp(&Event::code(1, "alice").line());
    until("alice's", || {
        scene
            .sent()
            .iter()
            .any(|s| s["user"] == "alice")
            .then_some(())
    });
    assert_eq!(scene.sent().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_several_vdoms_show_is_reminded_of_once() {
    let scene = Scene::new().await;
    {
        let mut state = scene.gate.state();
        state.vdoms = vec!["root".to_owned(), "guests".to_owned()];
        for vdom in ["root", "guests"] {
            state.add_token_in(vdom, 2, &code(2), later(23));
        }
        state.add_admin("bob", 2, "bob@example.com");
    }
    let config = scene.config("vdoms = [\"root\", \"guests\"]\n");
    let relay = Relay::start(&(config + "[reminder]\nbefore = \"24h\"\n"));
    assert_eq!(scene.first_sent()["user"], "bob");
    assert_eq!(relay.queue().len(), 1, "both would have been kept at once");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_reminded_unless_it_is_configured() {
    let scene = Scene::new().await;
    scene
        .gate
        .state()
        .set_token(1, "activation-expire", later(1));
    let relay = scene.start("");
    until("the device to be asked", || {
        relay.get("/").1.contains("FTKMOB0000000001").then_some(())
    });
    assert!(relay.queue().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_the_tokens_that_wait_and_a_row_with_its_proof() {
    let scene = Scene::new().await;
    {
        let mut state = scene.gate.state();
        state.add_token(2, later(5));
        state.add_user("<b>bob</b>", 2, "bob@example.com");
        state.add_token(3, later(-1));
    }
    let relay = scene.start("");
    let page = until("the device to be asked", || {
        Some(relay.get("/").1).filter(|page| page.contains("FTKMOB0000000002"))
    });
    let at = |text: &str| {
        page.find(text)
            .unwrap_or_else(|| panic!("{text} is not in\n{page}"))
    };
    assert!(
        at("FTKMOB0000000002") < at("FTKMOB0000000001"),
        "the first to expire first"
    );
    assert!(
        page.contains("&lt;b&gt;bob&lt;&#x2f;b&gt;") && !page.contains("<b>bob"),
        "{page}"
    );
    assert!(page.contains("And 1 whose code has expired"));
    assert!(!page.contains(&code(1)) && !page.contains("bob@example.com"));

    relay.send_udp(
        &Event {
            user: "<i>eve</i>".to_owned(),
            ..masked("")
        }
        .line(),
    );
    relay.send_udp(&masked("alice").line());
    scene.first_sent();
    let rows = relay.queue();
    let id = |user: &str| {
        let row = rows.iter().find(|r| r["user"] == user).unwrap();
        row["id"].as_str().unwrap().to_owned()
    };
    assert!(
        relay
            .get("/")
            .1
            .contains(&format!("href=\"/case/{}\"", id("alice")))
    );
    let (status, alice) = relay.get(&format!("/case/{}", id("alice")));
    assert_eq!(status, 200);
    for said in [
        "named the code: token FTKMOB0000000001 of alice",
        "a…@example.com",
        "on the listener udp",
    ] {
        assert!(alice.contains(said), "{said} is not in\n{alice}");
    }
    assert!(!alice.contains(&code(1)) && !alice.contains("alice@example.com"));
    let eve = relay.get(&format!("/case/{}", id("<i>eve</i>"))).1;
    assert!(eve.contains("eve") && !eve.contains("<i>"), "{eve}");
    for unknown in ["A99", "X", "%3Cscript%3E", "..%2f..%2fetc"] {
        let (status, said) = relay.get(&format!("/case/{unknown}"));
        assert!(status == 404 && !said.contains("script"), "{status} {said}");
    }
    let foreign = relay.get_as(&format!("/case/{}", id("alice")), "evil.test");
    assert_eq!(foreign.0, 421);
}

use std::net::IpAddr;

use futures_util::future::join_all;
use tanada_xapi::{ApiError, Ref, Value};

use crate::rpc::dispatch::Peer;
use crate::testing::{LOCAL, TestDaemon};

fn remote(last: u8) -> Peer {
    Peer { local: false, address: Some(IpAddr::from([192, 0, 2, last])) }
}

async fn login(t: &TestDaemon, peer: Peer, user: &str, password: &str) -> Result<Ref, ApiError> {
    let params = vec![Value::from(user), Value::from(password)];
    let session = t.call_raw(peer, "session.login_with_password", params).await?;
    Ok(Ref::from(session.as_str().unwrap()))
}

#[tokio::test]
async fn local_root_needs_no_password_and_others_need_the_right_one() {
    let t = TestDaemon::new(Vec::new());
    let session = login(&t, LOCAL, "root", "anything").await.unwrap();
    let denied = |user: &str| Err(ApiError::session_authentication_failed(user, "Authentication failure"));
    assert_eq!(login(&t, remote(1), "root", "").await, denied("root"), "none is set");
    let set = t.call_as(&session, "session.change_password", [Value::from(""), Value::from("right")]).await;
    assert_eq!(set, Ok(Value::Void));
    assert_eq!(login(&t, remote(1), "root", "wrong").await, denied("root"));
    assert_eq!(login(&t, remote(1), "admin", "right").await, denied("admin"));
    let session = login(&t, remote(1), "root", "right").await.unwrap();

    let change = |old: &str| [Value::from(old), Value::from("other")];
    let refused = t.call_as(&session, "session.change_password", change("wrong")).await.unwrap_err();
    assert!(refused.is("SESSION_AUTHENTICATION_FAILED"));
    assert_eq!(t.call_as(&session, "session.change_password", change("right")).await, Ok(Value::Void));
    assert_eq!(login(&t, remote(1), "root", "right").await, denied("root"));
    let file = std::fs::read_to_string(t.dir.path().join("state/root.password")).unwrap();
    assert!(!file.contains("other"));

    assert_eq!(t.call_as(&session, "session.logout", []).await, Ok(Value::Void));
    assert_eq!(t.call_as(&session, "pool.get_all", []).await, Err(ApiError::session_invalid(&session)));
}

#[tokio::test]
async fn an_address_that_guesses_is_shut_out_and_others_are_not() {
    let t = TestDaemon::new(Vec::new());
    t.daemon.passwords.set("right").unwrap();
    for _ in 0..10 {
        login(&t, remote(1), "root", "wrong").await.unwrap_err();
    }
    login(&t, remote(1), "root", "right").await.unwrap_err();
    login(&t, remote(2), "root", "right").await.unwrap();
}

#[tokio::test]
async fn guesses_at_once_are_no_more_than_guesses_in_a_row() {
    let t = TestDaemon::new(Vec::new());
    t.daemon.passwords.set("right").unwrap();
    let guesses = (0..30).map(|number| if number < 29 { "wrong" } else { "right" });
    let results = join_all(guesses.map(|password| login(&t, remote(1), "root", password))).await;
    assert!(results.iter().all(Result::is_err), "the thirtieth guess of one address was looked at");
    // Others and their right passwords are not held up, however many come at once.
    let logins = join_all((0..30).map(|_| login(&t, remote(2), "root", "right"))).await;
    assert!(logins.iter().all(Result::is_ok));
}

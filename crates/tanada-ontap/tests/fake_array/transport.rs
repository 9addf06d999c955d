//! What lies between the driver and the array: certificates, logins, overload, lost answers, jobs, pages.

use tanada_driver::registry::Backend;
use tanada_driver::{CreateRequest, DriverErrorKind};
use uuid::Uuid;

use crate::fake::{Fake, Trouble};

#[tokio::test]
async fn nobody_is_trusted_without_a_reason() {
    let fake = Fake::start().await;
    let mut config = fake.config(Uuid::new_v4());
    config.device_config.remove("cacert");
    let error = fake.backend().create(&config).await.unwrap_err();
    assert_eq!((error.kind, error.sm), (DriverErrorKind::Unreachable, Some(124)));
    assert!(error.message.contains("device-config:fingerprint"), "{error}");
    assert_eq!(fake.state().calls, 0, "the password was sent to somebody who is not trusted");

    config.device_config.insert("fingerprint".into(), "00".repeat(32));
    let error = fake.backend().create(&config).await.unwrap_err();
    assert_eq!((error.kind, error.sm), (DriverErrorKind::Unreachable, Some(124)));
    assert_eq!(fake.state().calls, 0);

    config.device_config.insert("fingerprint".into(), fake.server.fingerprint.clone());
    fake.backend().create(&config).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_said_once_and_not_shown() {
    let fake = Fake::start().await;
    let mut config = fake.config(Uuid::new_v4());
    config.device_config.insert("password".into(), "wrong horse".into());
    let error = fake.backend().create(&config).await.unwrap_err();
    assert_eq!(error.sm, Some(125));
    assert!(!error.message.contains("wrong horse"), "{error}");
    assert_eq!(fake.state().calls, 1, "a refused login is not repeated: accounts get locked");
}

#[tokio::test]
async fn nothing_at_the_address_is_unreachable() {
    let fake = Fake::start().await;
    let mut config = fake.config(Uuid::new_v4());
    config.device_config.insert("target".into(), "127.0.0.1:1".into());
    let error = fake.backend().create(&config).await.unwrap_err();
    assert_eq!((error.kind, error.sm), (DriverErrorKind::Unreachable, Some(124)));
}

#[tokio::test]
async fn overload_and_lost_answers_pass() {
    let fake = Fake::start().await;
    let config = fake.config(Uuid::new_v4());
    fake.backend().create(&config).await.unwrap();
    let driver = fake.backend().open(&config).await.unwrap();
    for trouble in [Trouble::Status(429), Trouble::Status(503), Trouble::LostAfter] {
        for nth in 1..=4 {
            fake.trouble(nth, trouble);
            let id = Uuid::new_v4();
            let (size, moved) = driver.create(&CreateRequest::new(id, 1)).await.unwrap();
            assert!(!fake.recover(), "{trouble:?} at request {nth} did not come");
            assert_eq!((size, moved.changed), (1 << 20, true), "{trouble:?} at request {nth}");
            assert!(driver.destroy(id).await.unwrap().changed);
        }
    }
}

#[tokio::test]
async fn jobs_are_waited_for_and_forgotten_ones_are_looked_up() {
    let fake = Fake::start().await;
    let config = fake.config(Uuid::new_v4());
    for forget in [false, true] {
        fake.state().jobs = true;
        fake.state().forget_jobs = forget;
        fake.backend().create(&config).await.unwrap();
        let driver = fake.backend().open(&config).await.unwrap();
        let id = Uuid::new_v4();
        assert!(driver.create(&CreateRequest::new(id, 5 << 20)).await.unwrap().1.changed);
        assert_eq!(driver.resize(id, 7 << 20).await.unwrap().0, 7 << 20);
        assert!(driver.destroy(id).await.unwrap().changed);
    }
}

#[tokio::test]
async fn lists_go_over_all_pages() {
    let fake = Fake::start().await;
    let config = fake.config(Uuid::new_v4());
    fake.backend().create(&config).await.unwrap();
    let driver = fake.backend().open(&config).await.unwrap();
    for _ in 0..7 {
        driver.create(&CreateRequest::new(Uuid::new_v4(), 1)).await.unwrap();
    }
    fake.state().page = Some(3);
    assert_eq!(driver.scan().await.unwrap().len(), 7);
}

#[tokio::test]
async fn arrays_that_cannot_be_used_are_refused_with_their_numbers() {
    let fake = Fake::start().await;
    let config = fake.config(Uuid::new_v4());
    let create = async |change: &dyn Fn()| {
        change();
        fake.backend().create(&config).await.unwrap_err()
    };
    let service = |key: &str, value: serde_json::Value| {
        fake.state().collections.get_mut("/protocols/san/iscsi/services").unwrap()[0][key] = value;
    };
    assert_eq!(create(&|| service("enabled", false.into())).await.sm, Some(132));
    service("enabled", true.into());
    assert_eq!(create(&|| service("target", serde_json::json!({"name": ""}))).await.sm, Some(131));
    let mut unknown = config.clone();
    service("target", serde_json::json!({"name": "iqn.x:y"}));
    unknown.device_config.insert("aggregate".into(), "aggr9".into());
    let error = fake.backend().create(&unknown).await.unwrap_err();
    assert_eq!(error.sm, Some(123));
    unknown.device_config.remove("aggregate");
    let error = fake.backend().create(&unknown).await.unwrap_err();
    assert_eq!(error.sm, Some(123));
    let detail = error.detail.unwrap();
    assert!(detail.contains("<Name>aggr1</Name>") && detail.contains("<Name>aggr2</Name>"), "{detail}");
    fake.state().collections.get_mut("/network/ip/interfaces").unwrap().clear();
    assert_eq!(create(&|| ()).await.sm, Some(132));
}

#[tokio::test]
async fn answers_that_make_no_sense_are_failures_and_nothing_worse() {
    let fake = Fake::start().await;
    let config = fake.config(Uuid::new_v4());
    fake.backend().create(&config).await.unwrap();
    let driver = fake.backend().open(&config).await.unwrap();
    let before = fake.objects();
    for trouble in [Trouble::Garbage, Trouble::Nonsense] {
        for nth in 1.. {
            let id = Uuid::new_v4();
            fake.trouble(nth, trouble);
            let told = driver.create(&CreateRequest::new(id, 1)).await;
            let reached = !fake.recover();
            assert!(driver.create(&CreateRequest::new(id, 1)).await.is_ok());
            driver.destroy(id).await.unwrap();
            assert_eq!(fake.objects(), before, "{trouble:?} at request {nth}");
            if !reached {
                assert!(told.is_ok() && nth > 4);
                break;
            }
            // Nonsense in the answer to a change that was made is not even looked at.
            if let Err(error) = told {
                assert_eq!(error.kind, DriverErrorKind::Io, "{error}");
            }
        }
    }
}

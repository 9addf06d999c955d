//! Jobs, busy snapshots, limits, injected faults: what a careful client has to live with.

use serde_json::{Value, json};
use sim_ontap::{Account, Handle, Options};
use sim_target::faults::{Action, Rule};

use crate::tools::{array, array_with, call, call_as, lun, run, volume};

fn code(answer: &(u16, Value)) -> (u16, String) {
    (answer.0, answer.1["error"]["code"].as_str().unwrap_or_default().to_string())
}

/// Polls a job to its end.
fn end_of_job(array: &Handle, answer: &Value) -> Value {
    let path = answer["job"]["_links"]["self"]["href"].as_str().expect("a job").to_string();
    loop {
        let (status, job) = call(array, "GET", &format!("{path}?fields=**"), None);
        assert_eq!(status, 200, "{job}");
        if job["state"] != json!("running") {
            return job;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

#[test]
fn jobs_run_fail_and_are_forgotten() {
    let (_dir, array) = array();
    let body =
        json!({ "svm": { "name": "svm1" }, "name": "fv0", "aggregates": [{ "name": "aggr1" }], "size": 1u64 << 30 });
    let (status, answer) = call(&array, "POST", "/api/storage/volumes", Some(body.clone()));
    assert_eq!(status, 202, "{answer}");
    let job = end_of_job(&array, &answer);
    assert_eq!((&job["state"], &job["code"]), (&json!("success"), &json!(0)));
    let (_, answer) = call(&array, "POST", "/api/storage/volumes", Some(body));
    let job = end_of_job(&array, &answer);
    assert_eq!(
        (&job["state"], &job["code"], &job["error"]["code"]),
        (&json!("failure"), &json!(917526), &json!("917526"))
    );
    let (_dir, array) = array_with(|options| Options { job_expiry_ms: 50, ..options });
    let fv1 = json!({ "svm": { "name": "svm1" }, "name": "fv1", "aggregates": [{ "name": "aggr1" }] });
    let (_, answer) = call(&array, "POST", "/api/storage/volumes", Some(fv1));
    let path = answer["job"]["_links"]["self"]["href"].as_str().unwrap();
    while call(&array, "GET", path, None).0 == 200 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(code(&call(&array, "GET", path, None)), (404, "4".into()));
}

#[test]
fn sharing_blocks_makes_snapshots_wait() {
    let (_dir, array) = array_with(|options| Options { split_ms: 1500, ..options });
    let fv = volume(&array, "fv0", json!({}));
    let a = lun(&array, "/vol/fv0/a", 1 << 20, json!({}));
    let snapshots = format!("/api/storage/volumes/{fv}/snapshots");
    let take = |name: &str| {
        call(
            &array,
            "POST",
            &format!("{snapshots}?return_timeout=30&return_records=true"),
            Some(json!({ "name": name })),
        )
    };
    let first = take("s1");
    assert_eq!(first.0, 201, "{}", first.1);
    let uuid = first.1["records"][0]["uuid"].as_str().unwrap();
    let clone = json!({ "svm": { "name": "svm1" }, "name": "/vol/fv0/b",
        "clone": { "source": { "name": "/vol/fv0/.snapshot/s1/a" } } });
    assert_eq!(call(&array, "POST", "/api/storage/luns", Some(clone)).0, 201);
    let status = call(&array, "GET", &format!("/api/storage/file/clone/split-status/{fv}"), None).1;
    assert_eq!(status["pending_splits"], json!(1));
    let delete = || call(&array, "DELETE", &format!("{snapshots}/{uuid}?return_timeout=30"), None);
    assert_eq!(code(&delete()).1, "1638555", "busy");
    assert_eq!(code(&take("s2")).1, "524481", "fenced");
    let owners = call(&array, "GET", &format!("{snapshots}/{uuid}"), None).1["owners"].clone();
    assert_eq!(owners.as_array().map(Vec::len), Some(1));
    while call(&array, "GET", &format!("/api/storage/file/clone/split-status/{fv}"), None).1["pending_splits"]
        != json!(0)
    {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(delete().0, 200);
    assert_eq!(take("s2").0, 201);
    let by_uuid = json!({ "svm": { "name": "svm1" }, "name": "/vol/fv0/c",
        "clone": { "source": { "name": "/vol/fv0/.snapshot/s2/a", "uuid": a } } });
    assert_eq!(code(&call(&array, "POST", "/api/storage/luns", Some(by_uuid))).1, "5374899");
}

#[test]
fn limits_are_kept_and_unknown_names_are_refused_where_wanted() {
    let (_dir, array) =
        array_with(|options| Options { luns_per_volume_max: 2, snapshots_per_volume_max: 1, strict: true, ..options });
    let fv = volume(&array, "fv0", json!({}));
    lun(&array, "/vol/fv0/a", 1 << 20, json!({}));
    lun(&array, "/vol/fv0/b", 1 << 20, json!({}));
    let third =
        json!({ "svm": { "name": "svm1" }, "name": "/vol/fv0/c", "os_type": "linux", "space": { "size": 1 << 20 } });
    assert_eq!(code(&call(&array, "POST", "/api/storage/luns", Some(third.clone()))).1, "5440509");
    let snapshots = format!("/api/storage/volumes/{fv}/snapshots?return_timeout=30");
    assert_eq!(call(&array, "POST", &snapshots, Some(json!({ "name": "s1" }))).0, 201);
    assert_eq!(code(&call(&array, "POST", &snapshots, Some(json!({ "name": "s2" })))).1, "525062");
    for path in ["/api/storage/luns?nonsense=1", "/api/storage/luns?fields=uuid,nonsense"] {
        assert_eq!(code(&call(&array, "GET", path, None)), (400, "262179".into()), "{path}");
    }
    assert_eq!(call(&array, "GET", "/api/storage/luns?fields=nonsense&ignore_unknown_fields=true", None).0, 200);
    let mut odd = third;
    odd["nonsense"] = json!(1);
    assert_eq!(code(&call(&array, "POST", "/api/storage/luns", Some(odd))).1, "262179");
    assert_eq!(code(&call(&array, "GET", "/api/nonsense", None)), (404, "3".into()));
    assert_eq!(
        code(&call(&array, "DELETE", "/api/storage/luns", None)).1,
        "262190",
        "everything is not deleted by mistake"
    );
    let none = call(&array, "DELETE", "/api/storage/luns?name=/vol/none/*", None);
    assert_eq!((none.0, &none.1["num_records"]), (200, &json!(0)));
}

#[test]
fn accounts_see_and_do_what_is_theirs() {
    let (_dir, array) = array_with(|mut options| {
        options.svms.push("svm2".into());
        options.accounts.push(Account { read_only: true, ..Account::cluster("reader", "r") });
        options
    });
    volume(&array, "fv0", json!({}));
    lun(&array, "/vol/fv0/a", 1 << 20, json!({}));
    let count = |who: &str, path: &str| call_as(&array, who, "GET", path, None).1["num_records"].as_u64();
    assert_eq!(count("admin:netapp1!", "/api/svm/svms"), Some(2));
    assert_eq!(count("vsadmin:netapp1!", "/api/svm/svms"), Some(1));
    assert_eq!(count("vsadmin:netapp1!", "/api/storage/aggregates"), Some(0));
    assert_eq!(count("admin:netapp1!", "/api/storage/luns?svm.name=svm2"), Some(0));
    let igroup = json!({ "name": "g", "os_type": "linux", "svm": { "name": "svm2" } });
    let (status, error) =
        call_as(&array, "vsadmin:netapp1!", "POST", "/api/protocols/san/igroups", Some(igroup.clone()));
    assert_eq!(status, 400, "{error}");
    assert_eq!(
        code(&call_as(&array, "reader:r", "POST", "/api/protocols/san/igroups", Some(igroup))),
        (403, "6".into())
    );
    assert_eq!(call_as(&array, "reader:wrong", "GET", "/api/cluster", None).0, 401);
    // Tunnelling from the cluster's address.
    let (url, ca) = (format!("{}/api/storage/luns?fields=name", array.url()), array.ca());
    for (svm, expected) in [("svm1", "\"num_records\":1"), ("svm2", "\"num_records\":0"), ("svm3", "2621462")] {
        let header = format!("X-Dot-SVM-Name: {svm}");
        let (_, said) = run(
            "/usr/bin/curl",
            ["-sS", "--cacert", ca.to_str().unwrap(), "-u", "admin:netapp1!", "-H", &header, &url],
        );
        assert!(said.contains(expected), "{svm}: {said}");
    }
}

#[test]
fn faults_strike_once_and_where_they_are_told() {
    let (_dir, array) = array();
    volume(&array, "fv0", json!({}));
    let body = |name: &str| {
        Some(
            json!({ "svm": { "name": "svm1" }, "name": format!("/vol/fv0/{name}"), "os_type": "linux", "space.size": 4096 }),
        )
    };
    let faults = array.faults();
    faults.add(Rule::once("POST /api/storage/luns", Action::FailBefore("503".into())));
    assert_eq!(call(&array, "POST", "/api/storage/luns", body("a")).0, 503);
    assert_eq!(array.census().luns, 0);
    faults.add(Rule::once("POST /api/storage/luns", Action::FailAfter("65541".into())));
    assert_eq!(code(&call(&array, "POST", "/api/storage/luns", body("a"))).1, "65541");
    assert_eq!(array.census().luns, 1, "it took effect");
    faults.add(Rule::once("POST /api/storage/luns", Action::DropAfter));
    let text = body("b").unwrap().to_string();
    let url = format!("{}/api/storage/luns", array.url());
    let ca = array.ca();
    let (ok, said) =
        run("/usr/bin/curl", ["-sS", "--cacert", ca.to_str().unwrap(), "-u", "admin:netapp1!", "-d", &text, &url]);
    assert!(!ok, "an answer came: {said}");
    assert_eq!(array.census().luns, 2);
    faults.add(Rule::once("POST /api/storage/volumes", Action::Other("job_fail:524486".into())));
    let fv1 = json!({ "svm": { "name": "svm1" }, "name": "fv1", "aggregates": [{ "name": "aggr1" }] });
    assert_eq!(code(&call(&array, "POST", "/api/storage/volumes?return_timeout=30", Some(fv1.clone()))).1, "524486");
    faults.add(Rule::once("POST /api/storage/volumes", Action::Other("job_vanish".into())));
    let (status, answer) = call(&array, "POST", "/api/storage/volumes", Some(fv1));
    assert_eq!(status, 202);
    let path = answer["job"]["_links"]["self"]["href"].as_str().unwrap().to_string();
    while call(&array, "GET", &path, None).0 == 200 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(array.census().volumes, 2, "the outcome is unknown to whoever asked, and it was done");
    assert!(faults.drain_calls().contains(&"GET /api/cluster/jobs/{uuid}".to_string()));
}

#[test]
fn the_xml_interface_cuts_a_group_without_a_group() {
    let (_dir, array) = array();
    volume(&array, "fv0", json!({}));
    volume(&array, "fv1", json!({}));
    let (url, ca) = (format!("{}/servlets/netapp.servlets.admin.XMLrequest_filer", array.url()), array.ca());
    let ask = |call: &str| {
        let body = format!(
            "<?xml version='1.0'?><netapp xmlns='http://www.netapp.com/filer/admin' vfiler='svm1'>{call}</netapp>"
        );
        let (ok, said) =
            run("/usr/bin/curl", ["-sS", "--cacert", ca.to_str().unwrap(), "-u", "admin:netapp1!", "-d", &body, &url]);
        assert!(ok, "{said}");
        said
    };
    assert!(ask("<system-get-version/>").contains("<generation>9</generation><major>15</major>"));
    let volumes = "<volumes><volume-name>fv0</volume-name><volume-name>fv1</volume-name></volumes>";
    let started = ask(&format!("<cg-start><snapshot>s</snapshot><timeout>relaxed</timeout>{volumes}</cg-start>"));
    let id = started.split("cg-id>").nth(1).and_then(|rest| rest.split('<').next()).expect("an id").to_string();
    assert_eq!(array.census().snapshots, 0);
    assert!(ask(&format!("<cg-commit><cg-id>{id}</cg-id></cg-commit>")).contains("passed"));
    assert!(ask(&format!("<cg-commit><cg-id>{id}</cg-id></cg-commit>")).contains("errno=\"53411925\""));
    let found = ask(
        "<snapshot-get-iter><query><snapshot-info><name>s</name><volume>fv1</volume></snapshot-info></query></snapshot-get-iter>",
    );
    assert!(found.contains("<busy>false</busy>") && found.contains("<num-records>1</num-records>"), "{found}");
    assert!(ask("<snapshot-rename><volume>fv0</volume><current-name>s</current-name><new-name>t</new-name></snapshot-rename>").contains("passed"));
    assert!(ask("<volume-create/>").contains("errno=\"13005\""));
    assert_eq!(array.census().snapshots, 2);
}

#[test]
fn what_is_new_is_seen_later_where_there_is_a_lag() {
    let (_dir, array) = array_with(|options| Options { lag_ms: 700, ..options });
    volume(&array, "fv0", json!({}));
    let uuid = lun(&array, "/vol/fv0/a", 4096, json!({}));
    let path = format!("/api/storage/luns/{uuid}");
    assert_eq!(call(&array, "GET", &path, None).0, 404);
    assert_eq!(call(&array, "GET", "/api/storage/luns", None).1["num_records"], json!(0));
    let twice = json!({ "svm": { "name": "svm1" }, "name": "/vol/fv0/a", "os_type": "linux", "space.size": 4096 });
    assert_eq!(code(&call(&array, "POST", "/api/storage/luns", Some(twice))).1, "5374242", "it is there all the same");
    while call(&array, "GET", &path, None).0 == 404 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(call(&array, "GET", "/api/storage/luns", None).1["num_records"], json!(1));
    array.faults().add(Rule::once("POST /api/storage/luns", Action::Other("device_busy".into())));
    let clone = json!({ "svm": { "name": "svm1" }, "name": "/vol/fv0/b", "clone": { "source": { "uuid": uuid } } });
    let (_, error) = call(&array, "POST", "/api/storage/luns", Some(clone.clone()));
    assert!(error["error"]["message"].as_str().is_some_and(|words| words.contains("Device busy")), "{error}");
    assert_eq!(call(&array, "POST", "/api/storage/luns", Some(clone)).0, 201);
}

use super::{Limits, decode_call, decode_response, decode_value, decode_value_within};
use super::{encode_bare_response, encode_call, encode_response, encode_value};
use crate::{ApiError, DateTime, Value};

#[test]
fn values_are_written_as_xenapi_does() {
    let record = Value::map([
        ("name", Value::from("a<b>&\u{1}c")),
        ("size", Value::Int(1 << 40)),
        ("flag", Value::Bool(true)),
        ("ratio", Value::Float(0.5)),
        ("when", Value::DateTime(DateTime::EPOCH)),
        ("set", Value::set(["x"])),
        ("none", Value::Void),
    ]);
    let expected = "<value><struct>\
        <member><name>flag</name><value><boolean>1</boolean></value></member>\
        <member><name>name</name><value>a&lt;b&gt;&amp;c</value></member>\
        <member><name>none</name><value></value></member>\
        <member><name>ratio</name><value><double>0.5</double></value></member>\
        <member><name>set</name><value><array><data><value>x</value></data></array></value></member>\
        <member><name>size</name><value>1099511627776</value></member>\
        <member><name>when</name><value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value></member>\
        </struct></value>";
    assert_eq!(encode_value(&record), expected);
}

#[test]
fn every_kind_that_clients_send_is_read() {
    let cases = [
        ("<value>plain</value>", Value::from("plain")),
        ("<value/>", Value::from("")),
        ("<value> two  spaces </value>", Value::from(" two  spaces ")),
        ("<value><string>a &amp; &#x62;<![CDATA[<c>]]></string></value>", Value::from("a & b<c>")),
        ("<value>x&#13;\ny&quot;&apos;</value>", Value::from("x\r\ny\"'")),
        ("<value>\n <int>-7</int>\n</value>", Value::Int(-7)),
        ("<value><i8>9007199254740993</i8></value>", Value::Int(9_007_199_254_740_993)),
        ("<value><boolean>0</boolean></value>", Value::Bool(false)),
        ("<value><double>1e3</double></value>", Value::Float(1000.0)),
        ("<value><nil/></value>", Value::Nil),
        ("<value><array><data/></array></value>", Value::empty_set()),
        ("<value><struct></struct></value>", Value::empty_map()),
        (
            "<?xml version='1.0'?>\n<!-- c --><value><struct><member><name>k</name><value>v</value></member></struct></value>\n",
            Value::map([("k", "v")]),
        ),
    ];
    for (xml, value) in cases {
        assert_eq!(decode_value(xml).as_ref(), Ok(&value), "{xml}");
    }
}

#[test]
fn calls_and_replies_go_both_ways() {
    let params = [Value::from("OpaqueRef:1"), Value::map([("a", Value::set([Value::from("b"), Value::Bool(true)]))])];
    let call = decode_call(&encode_call("VM.create", &params)).unwrap();
    assert_eq!((call.method.as_str(), call.params.as_slice()), ("VM.create", &params[..]));
    assert_eq!(decode_call("<methodCall><methodName>x</methodName></methodCall>").unwrap().params, []);

    let ok = encode_response(&Ok(Value::from("v")));
    assert_eq!(decode_response(&ok).unwrap(), Ok(Value::from("v")));
    let error = ApiError::handle_invalid("VM", "OpaqueRef:1");
    assert_eq!(decode_response(&encode_response(&Err(error.clone()))).unwrap(), Err(error));
    let bare = Value::set(["a.b"]);
    assert_eq!(decode_response(&encode_bare_response(&bare)).unwrap(), Ok(bare));
}

#[test]
fn hostile_documents_are_refused() {
    let deep = "<value><array><data>".repeat(100_000);
    let wide = format!("<value><array><data>{}</data></array></value>", "<value/>".repeat(101));
    let cases = [
        "",
        "<value>",
        "<value></valeu>",
        "<value>a<int>1</int></value>",
        "<value><int>1</int>b</value>",
        "<value><int>99999999999999999999</int></value>",
        "<value><int>1</int></value><value/>",
        "<value><base64>AA==</base64></value>",
        "<value><boolean>2</boolean></value>",
        "<value>&lol;</value>",
        "<value>&#xFFFFFFFF;</value>",
        "<value>&#0;</value>",
        "<!DOCTYPE v [<!ENTITY a \"b\">]><value>&a;</value>",
        "<value><struct><member><value/></member></struct></value>",
        "<value><array><value/></array></value>",
        "<value><dateTime.iso8601>yesterday</dateTime.iso8601></value>",
        &deep,
    ];
    for xml in cases {
        assert!(decode_value(xml).is_err(), "{}", xml.get(..60).unwrap_or(xml));
    }
    assert!(decode_value(&wide).is_ok());
    assert!(decode_value_within(&wide, Limits { depth: 4, values: 101 }).is_err());
    assert!(decode_call("<methodCall><params/></methodCall>").is_err());
    assert!(
        decode_response(
            "<methodResponse><params><param><value><struct><member><name>Status</name>\
        <value>Maybe</value></member></struct></value></param></params></methodResponse>"
        )
        .is_err()
    );
}

#[test]
fn random_bytes_around_markup_never_panic() {
    // Cuts and splices of a valid call: each either decodes or is refused.
    let params = [Value::from("é&<"), Value::map([("a", Value::set([1i64, 2]))])];
    let xml = encode_call("VM.create", &params);
    for (at, _) in xml.char_indices() {
        assert!(decode_call(&xml[..at]).is_err(), "{at}");
        let _ = decode_call(&format!("{}{}", &xml[at..], &xml[..at]));
        let _ = decode_call(&format!("{}&{}", &xml[..at], &xml[at..]));
    }
}

//! `vssadmin list writers` in several languages, as bytes of the console's code page.

use crate::scenario::{Language, Writer};

/// The words of one language.
struct Labels {
    heading: &'static [u8],
    name: &'static [u8],
    id: &'static [u8],
    instance: &'static [u8],
    state: &'static [u8],
    last_error: &'static [u8],
    quote: u8,
    stable: &'static [u8],
    failed: &'static [u8],
    no_error: &'static [u8],
}

const ENGLISH: Labels = Labels {
    heading: b"vssadmin 1.1 - Volume Shadow Copy Service administrative command-line tool",
    name: b"Writer name",
    id: b"Writer Id",
    instance: b"Writer Instance Id",
    state: b"State",
    last_error: b"Last error",
    quote: b'\'',
    stable: b"Stable",
    failed: b"Failed",
    no_error: b"No error",
};

const GERMAN: Labels = Labels {
    heading: b"vssadmin 1.1 - Verwaltungsbefehlszeilenprogramm des Volumeschattenkopie-Diensts",
    name: b"Verfassername",
    id: b"Verfasserkennung",
    instance: b"Verfasserinstanzkennung",
    state: b"Status",
    last_error: b"Letzter Fehler",
    quote: b'"',
    stable: b"Stabil",
    failed: b"Fehlgeschlagen",
    no_error: b"Kein Fehler",
};

/// Code page 932. The second byte of a long vowel is that of an opening bracket: a trap for who looks for `[` alone.
const JAPANESE: Labels = Labels {
    heading: b"vssadmin 1.1 - \x83\x7b\x83\x8a\x83\x85\x81\x5b\x83\x80",
    name: b"\x83\x89\x83\x43\x83\x5e\x81\x5b\x96\xbc",
    id: b"\x83\x89\x83\x43\x83\x5e\x81\x5b Id",
    instance: b"\x83\x89\x83\x43\x83\x5e\x81\x5b \x83\x43\x83\x93\x83\x58\x83\x5e\x83\x93\x83\x58 Id",
    state: b"\x8f\xf3\x91\xd4",
    last_error: b"\x8d\xc5\x8c\xe3\x82\xcc\x83\x47\x83\x89\x81\x5b",
    quote: b'\'',
    stable: b"\x88\xc0\x92\xe8",
    failed: b"\x8e\xb8\x94\x73",
    no_error: b"\x83\x47\x83\x89\x81\x5b\x82\xc8\x82\xb5",
};

impl Language {
    const fn labels(self) -> &'static Labels {
        match self {
            Language::English => &ENGLISH,
            Language::German => &GERMAN,
            Language::Japanese => &JAPANESE,
        }
    }
}

/// The program's output. `after_freeze`: before the first one all writers are stable.
pub(crate) fn listing(writers: &[Writer], language: Language, after_freeze: bool) -> Vec<u8> {
    let labels = language.labels();
    let mut text = Vec::new();
    let mut line = |parts: &[&[u8]]| {
        parts.iter().for_each(|part| text.extend_from_slice(part));
        text.extend_from_slice(b"\r\n");
    };
    line(&[labels.heading]);
    line(&[b"(C) Copyright 2001-2013 Microsoft Corp."]);
    line(&[]);
    for (number, writer) in writers.iter().enumerate() {
        let (state, error) = if after_freeze { (writer.state, writer.error.as_str()) } else { (1, "") };
        let word = if state < 6 { labels.stable } else { labels.failed };
        let error = if error.is_empty() { labels.no_error } else { error.as_bytes() };
        let instance = format!("{{1bddd48e-5052-49db-9b07-{number:012x}}}");
        line(&[labels.name, b": ", &[labels.quote], writer.name.as_bytes(), &[labels.quote]]);
        line(&[b"   ", labels.id, b": ", writer.id.as_bytes()]);
        line(&[b"   ", labels.instance, b": ", instance.as_bytes()]);
        line(&[b"   ", labels.state, b": [", state.to_string().as_bytes(), b"] ", word]);
        line(&[b"   ", labels.last_error, b": ", error]);
        line(&[]);
    }
    text
}

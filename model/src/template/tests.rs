use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Message {
    role: String,
    content: String,
    name: Option<String>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    conversation: String,
    date: Option<String>,
    add_generation_prompt: bool,
    text: Option<String>,
    error: Option<String>,
}

/// Made by scripts/chat_templates.py with the original Jinja.
#[derive(Deserialize)]
struct Expected {
    conversations: BTreeMap<String, Vec<Message>>,
    cases: Vec<Case>,
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.to_owned(), content: content.to_owned(), name: None }
}

fn render(source: &str, messages: &[ChatMessage]) -> Result<String, TemplateError> {
    ChatTemplate::new(source, "<s>", "</s>")?.render(messages, Rendering::default())
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates")
}

#[test]
fn conversations_come_out_as_from_transformers() {
    let expected = std::fs::read_to_string(folder().join("expected.json")).unwrap();
    let expected: Expected = serde_json::from_str(&expected).unwrap();
    let mut used = std::collections::BTreeSet::new();
    for case in &expected.cases {
        let source = std::fs::read_to_string(folder().join(format!("{}.jinja", case.template))).unwrap();
        let template = ChatTemplate::new(&source, "<s>", "</s>").unwrap();
        let messages: Vec<_> = expected.conversations[&case.conversation]
            .iter()
            .map(|m| ChatMessage { name: m.name.clone(), ..message(&m.role, &m.content) })
            .collect();
        let date = case.date.as_deref().map_or(Date::DEFAULT, |date| date.parse().unwrap());
        let found = template.render(&messages, Rendering { add_generation_prompt: case.add_generation_prompt, date });
        let named = format!("{} of {:?}", case.template, case.conversation);
        match (&case.text, &case.error) {
            (Some(text), None) => assert_eq!(found.as_ref(), Ok(text), "{named}"),
            (None, Some(error)) => assert_eq!(found, Err(TemplateError::Refused(error.clone())), "{named}"),
            _ => panic!("{named} has neither text nor error, or both"),
        }
        used.insert(&case.template);
    }
    assert_eq!(used.len(), 6);
}

#[test]
fn a_template_reaches_nothing_outside() {
    for source in [
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{% extends 'base' %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages[0].__init__.__globals__['os'].environ }}",
        "{{ open('/etc/passwd') }}",
        "{{ now() }}",
        "{{ strftime_now('%s') }}",
    ] {
        let found = render(source, &[message("user", "x")]);
        assert!(found.as_ref().map_or(true, String::is_empty), "{source}: {found:?}");
    }
}

#[test]
fn steps_length_and_depth_are_bounded() {
    let one = [message("user", "x")];
    let nested = "{% for i in range(10000) %}".repeat(4) + &"{% endfor %}".repeat(4);
    assert_eq!(render(&nested, &one), Err(TemplateError::Steps));
    let long = "{% for i in range(2000) %}{{ 'x' * 1000 }}{% endfor %}";
    assert_eq!(render(long, &one), Err(TemplateError::TooLong));
    let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(matches!(render(deep, &one), Err(TemplateError::Refused(_))));
    let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
    assert_eq!(render(plain, &[]), Err(TemplateError::Messages(0)));
    assert_eq!(render(plain, &vec![message("user", ""); MAX_CHAT_MESSAGES + 1]), Err(TemplateError::Messages(2_049)));
    assert_eq!(render(plain, &vec![message("user", "x"); MAX_CHAT_MESSAGES]).map(|text| text.len()), Ok(2_048));
    assert_eq!(render(plain, &[message(&"r".repeat(65), "")]), Err(TemplateError::Role));
    assert_eq!(render(plain, &[message("user", &"x".repeat(MAX_TEXT_BYTES + 1))]), Err(TemplateError::TooLong));
}

/// The longest conversation that is let in does not run out of steps.
#[test]
fn long_conversations_have_steps_enough() {
    let turns = [message("user", "x"), message("assistant", "y")];
    let messages: Vec<_> = turns.into_iter().cycle().take(MAX_CHAT_MESSAGES - 1).collect();
    for name in ["llama3", "mistral", "qwen2", "qwen3", "zephyr"] {
        let source = std::fs::read_to_string(folder().join(format!("{name}.jinja"))).unwrap();
        assert!(render(&source, &messages).is_ok(), "{name}");
    }
}

#[test]
fn what_is_no_template_is_refused_at_once() {
    for source in ["{% if %}", "{{ x", "{% for m in messages %}"] {
        assert!(matches!(ChatTemplate::new(source, "", ""), Err(TemplateError::Syntax(_))), "{source}");
    }
}

#[test]
fn dates_are_those_of_the_calendar() {
    let format = |date: &str, format: &str| date.parse::<Date>().unwrap().format(format).unwrap();
    assert_eq!(format("2024-07-26", "%A %d %b %Y"), "Friday 26 Jul 2024");
    assert_eq!(format("2026-11-21", "%a %-d.%-m.%y|%e|%j"), "Sat 21.11.26|21|325");
    assert_eq!(format("0001-01-01", "%A %e %B"), "Monday  1 January");
    assert_eq!(format("2000-12-31", "%j"), "366");
    assert_eq!(Date::DEFAULT.to_string(), "2024-07-26");
    for bad in [
        "2023-02-29",
        "1900-02-29",
        "2024-13-01",
        "2024-00-01",
        "2024-01-32",
        "0000-01-01",
        "24-01-01",
        "2024-1-01",
        "2024/01/01",
        "2024-01-0é",
        "",
    ] {
        assert_eq!(bad.parse::<Date>(), Err(NoDate), "{bad}");
    }
}

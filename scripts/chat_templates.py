"""Renders conversations by the chat templates in model/tests/templates as transformers' apply_chat_template does, and
writes what comes out into expected.json beside them. Needs jinja2 3.1.6.

The set-up of the engine is that of transformers.utils.chat_template_utils: a sandbox with trimmed blocks and loop
controls, `tojson` that escapes nothing for HTML, `raise_exception`, and `strftime_now`, here of a pinned day.
"""

import datetime
import json
import pathlib

import jinja2
import jinja2.ext
import jinja2.sandbox

FOLDER = pathlib.Path(__file__).parent.parent / "model/tests/templates"

SYSTEM = {"role": "system", "content": " Be brief. \n"}
HELLO = {"role": "user", "content": "Hello, what's 1 < 2 & \"so\"?\n"}
ANSWER = {"role": "assistant", "content": "<think>\nwell\n</think>\n\n  Ünïcode 🦀 true. "}
MORE = {"role": "user", "content": "  More,\nplease", "name": "Ada"}
CONVERSATIONS = {
    "one": [HELLO],
    "system": [SYSTEM, HELLO],
    "turns": [SYSTEM, HELLO, ANSWER, MORE],
    "turns without system": [HELLO, ANSWER, MORE, ANSWER],
    "empty": [{"role": "user", "content": ""}],
    "two users": [HELLO, MORE],
    "late system": [HELLO, ANSWER, SYSTEM],
    "other role": [{"role": "critic", "content": "no"}],
    "only system": [SYSTEM],
}
DATES = [None, "2025-02-03", "2000-02-29"]
DEFAULT_DATE = "2024-07-26"


def render(source, messages, add_generation_prompt, date):
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    day = datetime.datetime.fromisoformat(date or DEFAULT_DATE)
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = day.strftime
    template = environment.from_string(source)
    try:
        return {
            "text": template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                bos_token="<s>",
                eos_token="</s>",
            )
        }
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}


def main():
    cases = []
    for path in sorted(FOLDER.glob("*.jinja")):
        source = path.read_text()
        for name, messages in CONVERSATIONS.items():
            for add_generation_prompt in [True, False]:
                for date in DATES if "strftime_now" in source else [None]:
                    outcome = render(source, messages, add_generation_prompt, date)
                    case = {"template": path.stem, "conversation": name, "date": date}
                    cases.append(case | {"add_generation_prompt": add_generation_prompt} | outcome)
    text = json.dumps({"conversations": CONVERSATIONS, "cases": cases}, ensure_ascii=False, indent=1)
    (FOLDER / "expected.json").write_text(text + "\n")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()

"""The page that describes the API: plain HTML from the OpenAPI document, without scripts or files of other sites."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

_CODE = re.compile(r"`([^`]+)`")


def api_page(document: Mapping[str, Any]) -> str:
    """Returns the page of an OpenAPI document."""
    info = document["info"]
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    sections = []
    for tag in document["tags"]:
        own = [_operation(document, *entry) for entry in operations if tag["name"] in entry[2]["tags"]]
        sections.append(f"<h2>{escape(tag['name'])}</h2><p>{_text(tag['description'])}</p>{''.join(own)}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<title>{escape(info["title"])}</title><link rel="stylesheet" href="docs/style.css"></head><body><main>'
        f"<h1>{escape(info['title'])}</h1><p>{_text(info['description'])}</p>"
        '<p><a href="openapi.json">OpenAPI document</a> · <a href="./">Page</a></p>'
        f"{''.join(sections)}</main></body></html>"
    )


def _operation(document: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]) -> str:
    rows = [
        _row(parameter["name"], f"{parameter['in']}, {_type(parameter['schema'])}", parameter.get("description", ""))
        for parameter in operation.get("parameters", ())
    ]
    parts = [_table("Parameters", rows)]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(_schema(document, f"Body, {kind}", content["schema"]))
    answers = []
    for status, response in operation["responses"].items():
        answers.append(_row(status, ", ".join(response.get("content", ())), response["description"]))
        if status < "300":
            for kind, content in response.get("content", {}).items():
                parts.append(_schema(document, f"Response {status}, {kind}", content.get("schema", {})))
    parts.append(_table("Responses", answers))
    return (
        f"<details><summary><code><b>{method.upper()}</b> {escape(path)}</code> {escape(operation['summary'])}"
        f"</summary><p>{_text(operation.get('description', ''))}</p>{''.join(parts)}</details>"
    )


def _schema(document: Mapping[str, Any], title: str, schema: Mapping[str, Any]) -> str:
    """Returns a table of an object's fields, with an example if there is one."""
    named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if "properties" not in named:
        return ""
    required = named.get("required", ())
    rows = [
        _row(name, _type(field) + (", required" if name in required else ""), field.get("description", ""))
        for name, field in named["properties"].items()
    ]
    examples = "".join(
        f"<pre>{escape(json.dumps(example, indent=2, ensure_ascii=False))}</pre>"
        for example in named.get("examples", ())
    )
    return _table(title, rows) + examples


def _type(schema: Mapping[str, Any]) -> str:
    """Returns the type of a schema in words, such as "array of JobView"."""
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(json.dumps(value) for value in schema["enum"])
    if schema.get("type") == "array":
        return f"array of {_type(schema['items'])}"
    return str(schema.get("const", schema.get("type", "any")))


def _table(title: str, rows: list[str]) -> str:
    return f"<h3>{escape(title)}</h3><table>{''.join(rows)}</table>" if rows else ""


def _row(name: str, kind: str, text: str) -> str:
    return f"<tr><th>{escape(name)}</th><td>{escape(kind)}</td><td>{_text(text)}</td></tr>"


def _text(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", escape(text))

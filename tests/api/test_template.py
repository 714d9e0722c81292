from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weavenet.api.template import DEPTH_MAX, Template, TemplateError, TemplateExecutionError

DATA = {
    "Version": "0.1.0",
    "Ready": True,
    "Router": {
        "Port": 6783,
        "Targets": None,
        "Peers": [{"Name": "a", "UID": 2**63}, {"Name": "b", "UID": 1}],
        "Attrs": {"mtu": 1376, "name": "fastdp"},
    },
    "IPAM": None,
}


@pytest.mark.parametrize(
    ("template", "output"),
    [
        ("", ""),
        ("plain }} text", "plain }} text"),
        ("{{.Version}}", "0.1.0"),
        ("{{ .Version }} {{.Router.Port}}\n", "0.1.0 6783\n"),
        ("{{json .Router.Attrs}}", '{"mtu":1376,"name":"fastdp"}'),
        ("{{.Router.Attrs | json}}", '{"mtu":1376,"name":"fastdp"}'),
        ("{{json .Router.Targets}} {{.Router.Targets}}", "null <nil>"),
        ("{{range .Router.Peers}}<{{.Name}}>{{end}}", "<a><b>"),
        ("{{range .Router.Peers}}{{.Name}}{{$.Router.Port}}{{end}}", "a6783b6783"),
        ("{{range .Router.Targets}}x{{else}}none{{end}}", "none"),
        ("{{range .Router.Attrs}}{{.}},{{end}}", "1376,fastdp,"),
        ("{{if .IPAM}}on{{else}}off{{end}}", "off"),
        ("{{if eq .Version `0.1.0`}}yes{{end}}", "yes"),
        ('{{if and .Ready (ne .Version "2")}}yes{{end}}', "yes"),
        ("{{with .Router}}{{.Port}}{{end}}", "6783"),
        ("{{len .Router.Peers}} {{len .Router.Targets}} {{len .Version}}", "2 0 5"),
        ("{{(index .Router.Peers 0).Name}}", None),
        ("{{json (index .Router.Peers 1)}}", '{"Name":"b","UID":1}'),
        ('{{index .Router.Attrs "mtu"}}', "1376"),
        ("{{not .Ready}} {{or .IPAM 5}} {{print 1 `x`}}", "false 5 1x"),
        ("a {{- /* note */ -}} b", "ab"),
        ("a\n{{- .Version -}}\n b", "a0.1.0b"),
        ("{{.Router.Peers}}", "[map[Name:a UID:9223372036854775808] map[Name:b UID:1]]"),
        ("{{$.Ready}}", "true"),
        ('{{"a\\"b"}}', 'a"b'),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_template_prints_what_go_prints(template: str, output: str | None) -> None:
    if output is None:
        with pytest.raises(TemplateError):
            Template(template)
        return
    assert Template(template).execute(DATA) == output


@pytest.mark.parametrize(
    "template",
    [
        "{{",
        "{{.Nope",
        "{{}}",
        "{{nope .}}",
        "{{.A.}}",
        "{{end}}",
        "{{else}}",
        "{{range .A}}",
        "{{if .A}}{{else}}{{else}}{{end}}",
        "{{.A | .B}}",
        "{{(.A}}",
        "{{.A)}}",
        "{{json |}}",
        '{{"unclosed}}',
        "{{$x := .A}}",
        '{{template "x"}}',
        "{{if .A}}{{else if .B}}{{end}}",
        "{{range .A}}" * (DEPTH_MAX + 2),
        "{{" + "(" * (DEPTH_MAX + 2) + "}}",
        '{{"\\q"}}',
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_template_that_cannot_be_read_is_refused(template: str) -> None:
    with pytest.raises(TemplateError):
        Template(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{.Nope}}",
        "{{.Version.Major}}",
        "{{.IPAM.Range}}",
        "{{range .Version}}{{end}}",
        "{{len .Ready}}",
        "{{json}}",
        "{{json . .}}",
        "{{index .Router.Peers 7}}",
        "{{index}}",
        "{{eq 1}}",
        "{{range $.Router.Peers}}" * 25 + "{{end}}" * 25,
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_template_that_the_data_do_not_fit_fails(template: str) -> None:
    with pytest.raises(TemplateExecutionError):
        Template(template).execute(DATA)


@given(st.text(alphabet='{}.|()$"` -abrngeif0', max_size=60))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    with suppress(TemplateError, TemplateExecutionError):
        Template(text).execute(DATA)

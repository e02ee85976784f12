package policy

import (
	"errors"
	"strings"
	"testing"
	"time"
)

const labText = `
groups:
  students: [carol, alice]
hosts:
  nas: 192.168.1.201
  lab: [192.168.1.0/24, 10.9.0.0/16]
rules:
  - name: students-ssh
    src: students
    dst: nas
    ports: [tcp/22, icmp]
  - src: [bob, tag:robot]
    dst: ["*"]
  - name: office
    src: "*"
    dst: [tag:printer, gw]
    ports: ["tcp/631,9100-9102", udp/161]
    times: {days: mon-fri, hours: "08:00-18:00", zone: Europe/Berlin, until: 2026-12-31}
tests:
  - who: alice
    accept: [nas:22, nas/icmp]
    deny: [nas:80, nas:22/udp, "lab:80"]
  - who: dave
    at: 2026-09-07T10:00:00+02:00
    accept: [laser:631]
`

func mustParse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParse(t *testing.T) {
	p := mustParse(t, labText)
	if got := terms(p.Rules[0].Src) + " " + terms(p.Rules[0].Dst) + " " + services(p.Rules[0].Services); got != "group:students host:nas icmp, tcp/22" {
		t.Errorf("the first rule is %s", got)
	}
	if r := p.Rules[1]; r.Named || !strings.HasPrefix(r.Name, "rule-") {
		t.Errorf("the second rule is named %q", r.Name)
	}
	want := time.Date(2027, 1, 1, 0, 0, 0, 0, p.Rules[2].When.loc)
	if got := p.Rules[2].When.Until; !got.Equal(want) {
		t.Errorf("until is %s, want the end of the day, %s", got, want)
	}
	again := mustParse(t, p.String())
	if !p.Equal(again) {
		t.Errorf("the canonical form is\n%s\nand means\n%s", p, again)
	}
	if d := Diff(p, again); len(d) != 0 {
		t.Errorf("it differs from itself: %q", d)
	}
}

func TestDefault(t *testing.T) {
	p := mustParse(t, Default)
	if len(p.Rules) != 2 || p.Rules[0].content() != "* -> routes any" {
		t.Errorf("the default policy is\n%s", p)
	}
}

// A rule's derived name depends on nothing but its content.
func TestDerivedName(t *testing.T) {
	a := mustParse(t, "rules:\n  - {src: alice, dst: 10.0.0.1}\n  - {src: [carol, bob], dst: 10.0.0.2, ports: [udp, tcp/22]}")
	b := mustParse(t, "rules:\n  - {dst: 10.0.0.2, src: [bob, carol], ports: [tcp/22, udp]}")
	if a.Rules[1].Name != b.Rules[0].Name {
		t.Errorf("one rule has the names %s and %s", a.Rules[1].Name, b.Rules[0].Name)
	}
	c := mustParse(t, "rules:\n  - {src: alice, dst: 10.0.0.1}\n  - {src: alice, dst: 10.0.0.1}")
	if c.Rules[1].Name != c.Rules[0].Name+"-2" {
		t.Errorf("two equal rules have the names %s and %s", c.Rules[0].Name, c.Rules[1].Name)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, c := range []struct {
		name, text string
		line       int
		want, hint string
	}{
		{"empty", "", 0, "the policy is empty", "rules: []"},
		{"unknown key", "rules:\n  - src: a\n    dts: b\n", 3, `unknown key "dts" in a rule`, "did you mean dst?"},
		{"unknown top key", "rule: []\n", 1, `unknown key "rule"`, "did you mean rules?"},
		{"twice", "rules: []\nrules: []\n", 2, `"rules" is there twice`, "remove one"},
		{"tab", "rules:\n\t- src: a\n", 2, "character", "indentation"},
		{"naked star", "rules:\n  - src: *\n    dst: routes\n", 2, "", "quotes"},
		{"alias", "groups:\n  a: &x [b]\nrules:\n  - src: *x\n    dst: routes\n", 4, "an alias is no source", `"*"`},
		{"two documents", "rules: []\n---\nrules: []\n", 0, "more than one document", "---"},
		{"port without protocol", "rules:\n  - src: a\n    dst: b\n    ports: [tcp/80,443]\n", 4, "port 443 says no protocol", "tcp/443"},
		{"no port", "rules:\n  - src: a\n    dst: b\n    ports: tcp/70000\n", 4, "is not a port", "1 to 65535"},
		{"ports of icmp", "rules:\n  - src: a\n    dst: b\n    ports: icmp/8\n", 4, "icmp has no ports", "leave"},
		{"range backwards", "rules:\n  - src: a\n    dst: b\n    ports: tcp/90-80\n", 4, "ends before it begins", "80-90"},
		{"protocol", "rules:\n  - src: a\n    dst: b\n    ports: sctp\n", 4, `"sctp" is not a protocol`, "tcp, udp"},
		{"host bits", "hosts:\n  lab: 192.168.1.7/24\nrules: []\n", 2, "host inside its network", "192.168.1.0/24"},
		{"host bits in a rule", "rules:\n  - src: a\n    dst: 192.168.1.7/24\n", 3, "host inside its network", "192.168.1.0/24"},
		{"not an address", "hosts:\n  lab: example\nrules: []\n", 2, "not an address", "192.168.1.0/24"},
		{"address as source", "rules:\n  - src: 10.0.0.1\n    dst: b\n", 2, "is not a source", "name the user"},
		{"routes as source", "rules:\n  - src: routes\n    dst: b\n", 2, "routes is not a source", "a user"},
		{"user as destination", "rules:\n  - src: a\n    dst: user:b\n", 3, "user is not a destination", "node"},
		{"group of groups", "groups:\n  a: [group:b]\nrules: []\n", 2, "is not a name for a user", "lists users"},
		{"reserved name", "hosts:\n  routes: 10.0.0.1\nrules: []\n", 2, "has a meaning of its own", "another name"},
		{"address as name", "hosts:\n  10.0.0.1: 10.0.0.1\nrules: []\n", 2, "is an address", "another name"},
		{"no dst", "rules:\n  - src: a\n", 2, "the rule lacks", "dst:"},
		{"two of a name", "rules:\n  - {name: x, src: a, dst: b}\n  - {name: x, src: a, dst: c}\n", 3, "there already, at line 2", "another name"},
		{"day", "rules:\n  - src: a\n    dst: b\n    times: {days: monday}\n", 4, `"monday" is not a day`, "mon-fri"},
		{"hours", "rules:\n  - src: a\n    dst: b\n    times: {hours: 8-18}\n", 4, "are not hours", "08:00-18:30"},
		{"zone", "rules:\n  - src: a\n    dst: b\n    times: {days: mon, zone: Mars/Base}\n", 4, "is not a time zone", "Europe/Berlin"},
		{"over before it begins", "rules:\n  - src: a\n    dst: b\n    times: {not-before: 2026-02-01, until: 2026-01-01}\n", 4, "end before they begin", "exchange"},
		{"test of nothing", "rules: []\ntests:\n  - who: a\n", 3, "tests nothing", "accept"},
		{"test of nobody", "rules: []\ntests:\n  - accept: b\n", 3, "does not say who", "who:"},
		{"test of all", "rules: []\ntests:\n  - who: '*'\n    accept: b\n", 3, "one user or machine", "name one user"},
		{"list expected", "rules: 7\n", 1, "rules is not a list", "dash"},
		{"mapping expected", "groups: [a]\n", 1, "groups is not a mapping", "key: value"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Parse([]byte(c.text))
			problems, ok := errors.AsType[Problems](err)
			if !ok {
				t.Fatalf("error %v", err)
			}
			p := problems[0]
			if p.Line != c.line || !strings.Contains(p.Text, c.want) || !strings.Contains(p.Hint, c.hint) {
				t.Errorf("line %d: %s, hint: %s; want line %d: %s, hint: %s", p.Line, p.Text, p.Hint, c.line, c.want, c.hint)
			}
		})
	}
}

func TestParseTarget(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"192.168.1.201", "192.168.1.201"},
		{"192.168.1.201:22", "192.168.1.201:22/tcp"},
		{"192.168.1.201:22/udp", "192.168.1.201:22/udp"},
		{"192.168.1.201/icmp", "192.168.1.201/icmp"},
		{"192.168.1.0/24", "192.168.1.0/24"},
		{"192.168.1.0/24:80,443", "192.168.1.0/24:80,443/tcp"},
		{"192.168.1.0/24:80/udp", "192.168.1.0/24:80/udp"},
		{"fd00::1", "fd00::1"},
		{"[fd00::1]:22", "[fd00::1]:22/tcp"},
		{"[fd00::]/64", ""},
		{"fd00::/64", "fd00::/64"},
		{"nas:8000-8100", "node:nas:8000-8100/tcp"},
		{"node:nas:53/udp", "node:nas:53/udp"},
		{"tag:printer", "tag:printer"},
		{"tag:printer:631", "tag:printer:631/tcp"},
		{"routes:22", "routes:22/tcp"},
		{"*", "*"},
		{"nas/tcp", "node:nas/tcp"},
		{"nas/any", "node:nas"},
		{"", ""}, {":22", ""}, {"nas:", ""}, {"nas:0", ""}, {"nas/sctp", ""}, {"user:bob:22", ""}, {"nas:22/icmp", ""}, {"10.0.0.1/8", ""},
	} {
		got, err := ParseTarget(c.in)
		if c.want == "" {
			if err == nil {
				t.Errorf("%q gives %s, want an error", c.in, got)
			}
			continue
		}
		if err != nil || got.String() != c.want {
			t.Errorf("%q gives %s, %v; want %s", c.in, got, err, c.want)
			continue
		}
		if again, err := ParseTarget(got.String()); err != nil || again.String() != c.want {
			t.Errorf("%q gives %s, %v", got, again, err)
		}
	}
}

func TestDiff(t *testing.T) {
	old := mustParse(t, labText)
	next := mustParse(t, strings.Replace(strings.Replace(labText, "[carol, alice]", "[alice]", 1), "tcp/22, icmp", "tcp/22", 1))
	got := strings.Join(Diff(old, next), "\n")
	want := `- group students: alice, carol
+ group students: alice
- rule students-ssh: group:students -> host:nas icmp, tcp/22
+ rule students-ssh: group:students -> host:nas tcp/22`
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// FuzzParse: whatever parses has a canonical form that means the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{labText, Default, "rules: []", "rules:\n  - {src: '*', dst: [fd00::/8, routes], ports: any}",
		"rules:\n  - src: a\n    dst: b\n    times: {hours: ['22:00-06:00', '08:00-09:00'], not-before: 2026-01-01T00:00:00.5Z}",
		"groups: {a: [b]}\nrules: [{src: [a, user:a], dst: [host:x, node:x]}]\nhosts: {x: [10.0.0.1, 10.0.0.0/8]}", "a: &a [*a]", "? [x]: y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := Parse([]byte(text))
		if err != nil {
			if _, ok := errors.AsType[Problems](err); !ok {
				t.Fatalf("error %T: %v", err, err)
			}
			return
		}
		canonical := p.String()
		again, err := Parse([]byte(canonical))
		if err != nil {
			t.Fatalf("the canonical form\n%s\ndoes not parse: %v", canonical, err)
		}
		if again.String() != canonical {
			t.Fatalf("canonical\n%s\nagain\n%s", canonical, again)
		}
		_ = p.Check(World{})
		_ = p.RunTests(World{})
		Compile(p, World{}, "x", nil)
	})
}

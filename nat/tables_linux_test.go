package nat

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"overlayd/internal/netnstest"
)

// backends are the programs to try, so far as they are installed.
var backends = []string{"/usr/sbin/iptables-nft", "/usr/sbin/iptables-legacy"}

// eachBackend runs a test with each of them in a network of its own. The lock of
// iptables is private too, so that tests do not wait for the machine.
func eachBackend(t *testing.T, f func(t *testing.T, ipt string)) {
	found := 0
	for _, ipt := range backends {
		if _, err := os.Stat(ipt); err != nil {
			continue
		}
		found++
		t.Run(ipt[strings.LastIndex(ipt, "-")+1:], func(t *testing.T) {
			netnstest.In(t, func(t *testing.T) {
				if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
					t.Error(err)
				}
				netnstest.Run(t, "ip link add eth0 type veth peer name switch")
				f(t, ipt)
			})
		})
	}
	if found == 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs iptables, and CI must not skip it")
		}
		t.Skip("SKIPPED: no iptables")
	}
}

var (
	comments = regexp.MustCompile(`(?m)^#.*\n`)
	counters = regexp.MustCompile(`\[\d+:\d+\]`)
)

// picture is the whole firewall, by iptables' word and by nftables'. Listing
// with iptables-legacy would make its tables; saving does not.
func picture(t *testing.T, ipt string) string {
	out := netnstest.Run(t, ipt+"-save")
	if nft, err := exec.LookPath("nft"); err == nil && strings.HasSuffix(ipt, "nft") {
		out += "# nft\n" + netnstest.Run(t, nft+" -s list ruleset")
	}
	return counters.ReplaceAllString(comments.ReplaceAllString(out, ""), "[0:0]")
}

func newTables(t *testing.T, ipt string, j Journal) *Tables {
	tables, err := New(Options{Journal: j, Path: ipt})
	if err != nil {
		t.Fatal(err)
	}
	return tables
}

func apply(t *testing.T, tables *Tables, r Ruleset) {
	t.Helper()
	if err := tables.Apply(t.Context(), r); err != nil {
		t.Error(err)
	}
}

func clear(t *testing.T, tables *Tables) {
	t.Helper()
	if err := tables.Clear(t.Context()); err != nil {
		t.Error(err)
	}
}

// hosts are firewalls that we must get along with.
var hosts = []struct {
	name  string
	setup []string // arguments of iptables
}{
	{"untouched", nil},
	{"policy drop", []string{"-P FORWARD DROP", "-P INPUT DROP"}},
	{"docker", []string{
		"-N DOCKER", "-N DOCKER-USER", "-N DOCKER-ISOLATION-STAGE-1", "-P FORWARD DROP",
		"-A DOCKER-USER -j RETURN", "-A FORWARD -j DOCKER-USER", "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
		"-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", "-A FORWARD -o docker0 -j DOCKER",
		"-t nat -N DOCKER", "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
		"-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
	}},
	{"a user's", []string{
		"-A INPUT -p tcp --dport 22 -m comment --comment ssh -j ACCEPT", "-A FORWARD -j REJECT",
		"-t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu", "-t raw -A PREROUTING -i lo -j ACCEPT",
	}},
	{"used once", []string{"-t nat -A POSTROUTING -j RETURN", "-t nat -D POSTROUTING -j RETURN", "-A FORWARD -j ACCEPT", "-D FORWARD -j ACCEPT"}},
}

func TestApplyAndClear(t *testing.T) {
	for _, host := range hosts {
		t.Run(host.name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, ipt string) {
				for _, args := range host.setup {
					netnstest.Run(t, ipt+" "+args)
				}
				legacy := strings.HasSuffix(ipt, "legacy")
				if legacy { // its tables stay once they are used, see doc.go
					for _, table := range []string{"filter", "nat", "mangle"} {
						netnstest.Run(t, ipt+" -t "+table+" -S")
					}
				}
				before := picture(t, ipt)
				j := &memory{}
				apply(t, newTables(t, ipt, j), gateway)
				applied := picture(t, ipt)
				tables := newTables(t, ipt, j) // killed and started again
				start := time.Now()
				apply(t, tables, gateway)
				if took := time.Since(start); took > 100*time.Millisecond {
					t.Logf("nothing to do took %v", took)
				}
				if diff := cmp.Diff(applied, picture(t, ipt)); diff != "" {
					t.Errorf("applied again: %s", diff)
				}
				if have, err := tables.read(t.Context()); err != nil || len(diff(have, gateway.chains(true))) > 0 {
					t.Errorf("not settled: %v %v", diff(have, gateway.chains(true)), err)
				}
				for range 2 {
					clear(t, newTables(t, ipt, j))
				}
				if diff := cmp.Diff(before, picture(t, ipt)); diff != "" {
					t.Errorf("after: %s", diff)
				}
				if len(j.notes) > 0 {
					t.Errorf("still noted: %v", j.notes)
				}
			})
		})
	}
}

// TestOthersMeanwhile lets others change the firewall while ours is there.
func TestOthersMeanwhile(t *testing.T) {
	for _, tt := range []struct {
		name string
		acts []string
	}{
		{"docker starts", []string{"-N DOCKER-USER", "-A DOCKER-USER -j DROP", "-I FORWARD -j DOCKER-USER"}},
		{"our jump removed", []string{"-D FORWARD -j OVL-FWD"}},
		{"our rules flushed", []string{"-F OVL-FWD"}},
		{"our rule removed", []string{"-D OVL-FWD 1"}},
		{"a rule among ours", []string{"-I OVL-FWD 2 -j ACCEPT"}},
		{"everything flushed", []string{"-F", "-X", "-t nat -F", "-t nat -X"}},
		{"came to use a table", []string{"-t nat -A POSTROUTING -j RETURN"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			eachBackend(t, func(t *testing.T, ipt string) {
				netnstest.Run(t, ipt+" -P FORWARD DROP")
				j := &memory{}
				tables := newTables(t, ipt, j)
				apply(t, tables, gateway)
				for _, a := range tt.acts {
					netnstest.Run(t, ipt+" "+a)
				}
				apply(t, tables, gateway)
				have, err := tables.read(t.Context())
				if err != nil {
					t.Error(err)
				}
				for _, c := range gateway.chains(true) {
					if diff := cmp.Diff(c.rules, have[c.table][c.name]); diff != "" {
						t.Errorf("%s: %s", c.name, diff)
					}
					if from := have[c.table][c.from]; target(from[0]) != c.name {
						t.Errorf("%s: %q", c.from, from)
					}
				}
				clear(t, tables)
				after := picture(t, ipt)
				if strings.Contains(after, "OVL-") || !strings.Contains(after, "FORWARD DROP") {
					t.Errorf("after: %s", after)
				}
				for _, a := range tt.acts {
					kept := strings.Contains(a, "DOCKER") || strings.Contains(a, "POSTROUTING -j")
					if _, rule, ok := strings.Cut(a, "-j "); kept && ok && !strings.Contains(after, "-j "+rule) {
						t.Errorf("lost %s: %s", a, after)
					}
				}
			})
		})
	}
}

func TestChangedRuleset(t *testing.T) {
	eachBackend(t, func(t *testing.T, ipt string) {
		tables := newTables(t, ipt, &memory{})
		apply(t, tables, gateway)
		member := Ruleset{Link: "ovl0", Overlay: gateway.Overlay}
		apply(t, tables, member)
		if got := picture(t, ipt); strings.Contains(got, "OVL-POST") || !strings.Contains(got, "-A OVL-FWD -i ovl0 -j DROP") {
			t.Errorf("no LAN any more: %s", got)
		}
		apply(t, tables, gateway)
		clear(t, tables)
	})
}

func TestNoIPTables(t *testing.T) {
	_, err := New(Options{Journal: &memory{}, Path: "/nonexistent/iptables"})
	var e *Error
	if !errors.As(err, &e) || e.Hint() != "apt install iptables" {
		t.Errorf("got %v", err)
	}
}

// TestRefused asks for something that iptables refuses: the error says what was
// tried and what iptables said.
func TestRefused(t *testing.T) {
	eachBackend(t, func(t *testing.T, ipt string) {
		tables := newTables(t, ipt, &memory{})
		err := tables.run(t.Context(), []step{{table: "filter", op: appendRule, chain: "NONE", rule: "-j ACCEPT"}})
		if err == nil || !strings.HasPrefix(err.Error(), "iptables -t filter -A NONE -j ACCEPT: ") || strings.Contains(err.Error(), "exit status") {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add(message(nftType(unix.NFT_MSG_GETCHAIN), 0, unix.NFPROTO_IPV4, 0, attr(unix.NFTA_CHAIN_NAME, "FORWARD")))
	f.Fuzz(func(t *testing.T, b []byte) {
		messages(b, func(typ uint16, body []byte) bool {
			errno(body)
			for _, v := range attributes(body[min(len(body), nfgenHeader):]) {
				text(v)
				number(v)
			}
			return true
		})
	})
}

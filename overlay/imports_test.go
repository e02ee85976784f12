package overlay

import (
	"os/exec"
	"strings"
	"testing"
)

// TestImports keeps the packages in their order: a line of `go list` has a
// package and what it imports itself, or reaches.
func TestImports(t *testing.T) {
	list := func(args ...string) map[string][]string {
		out, err := exec.Command("go", append([]string{"list"}, args...)...).Output()
		if err != nil {
			t.Fatalf("go list: %v", err)
		}
		all := map[string][]string{}
		for line := range strings.Lines(string(out)) {
			words := strings.Fields(line)
			all[words[0]] = words[1:]
		}
		return all
	}
	only := map[string]string{ // by prefix of an import: who alone may have it
		"golang.zx2c4.com/wireguard/device": "overlayd/overlay/tunnel",
		"github.com/vishvananda/netlink":    "overlayd/routing",
		"github.com/coreos/go-iptables":     "overlayd/nat",
	}
	imports := list("-f", `{{.ImportPath}} {{join .Imports " "}}`, "overlayd/...")
	if len(imports) < 10 {
		t.Fatalf("only %d packages", len(imports))
	}
	for pkg, imported := range imports {
		for _, i := range imported {
			for what, who := range only {
				if strings.HasPrefix(i, what) && pkg != who {
					t.Errorf("%s imports %s, which is for %s", pkg, i, who)
				}
			}
		}
	}

	layers := map[string]string{ // what each package may reach of ours
		"overlayd/journal":          "",
		"overlayd/routing":          "",
		"overlayd/nat":              "",
		"overlayd/overlay/key":      "",
		"overlayd/overlay/udp":      "",
		"overlayd/overlay/coord":    "overlayd/overlay/key overlayd/overlay/coord/api",
		"overlayd/overlay/relay":    "overlayd/overlay/key overlayd/overlay/udp",
		"overlayd/overlay/underlay": "overlayd/overlay/key overlayd/overlay/udp overlayd/overlay/relay",
		"overlayd/overlay/tunnel":   "overlayd/overlay/key",
	}
	for pkg, reached := range list("-f", `{{.ImportPath}} {{join .Deps " "}}`, "overlayd/...") {
		allowed, layered := layers[pkg]
		for _, r := range reached {
			if strings.HasPrefix(r, "overlayd/") && layered && !strings.Contains(" "+allowed+" ", " "+r+" ") {
				t.Errorf("%s reaches %s", pkg, r)
			}
		}
	}
}

package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/spf13/cobra"
)

// buildInfo says what this program was built from.
type buildInfo struct {
	Schema    string `json:"schema"`
	Version   string `json:"version"`
	Commit    string `json:"commit"`
	Modified  bool   `json:"modified"` // the tree had changes that are in no commit
	Go        string `json:"go"`
	Platform  string `json:"platform"`
	WireGuard string `json:"wireguard_go"`
}

// version is set by the linker (-X main.version=…); the Makefile takes it from
// git describe.
var version string

// wireguardModule is the module whose version decides how the tunnel behaves.
const wireguardModule = "golang.zx2c4.com/wireguard"

// build reads what the Go tool wrote into the program.
var build = sync.OnceValue(func() buildInfo {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{}
	}
	return buildOf(info)
})

func buildOf(info *debug.BuildInfo) buildInfo {
	b := buildInfo{
		Schema: "overlayd.version/v1", Version: info.Main.Version, Go: runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if version != "" {
		b.Version = version
	}
	if b.Version == "" || b.Version == "(devel)" {
		b.Version = "devel"
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			b.Commit = s.Value
		case "vcs.modified":
			b.Modified = s.Value == "true"
		}
	}
	for _, d := range info.Deps {
		if d.Path == wireguardModule {
			b.WireGuard = d.Version
		}
	}
	return b
}

func (p *program) versionCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "print the version and what it was built from",
		Long:    "Print the version, the commit, and the versions of Go and wireguard-go in this program.",
		Example: "  overlayd version --json",
		Args:    words(0, 0, ""),
		RunE: func(*cobra.Command, []string) error {
			b := build()
			if p.common.json {
				return printJSON(p.stdout, b)
			}
			commit := orUnknown(b.Commit)
			if b.Modified {
				commit += ", with changes"
			}
			fmt.Fprintf(p.stdout, "overlayd      %s\ncommit        %s\ngo            %s, %s\nwireguard-go  %s\n",
				b.Version, commit, b.Go, b.Platform, orUnknown(b.WireGuard))
			return nil
		},
	}
	p.jsonFlag(cmd)
	return cmd
}

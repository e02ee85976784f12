package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestHelp: every verb stands in the overview, and its own help says what it
// does, shows it, fits a terminal, and has a word of ours for what a flag takes.
func TestHelp(t *testing.T) {
	overview := strings.FieldsFunc(verbs, func(r rune) bool { return strings.ContainsRune(" ,\n", r) })
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		top := cmd.Parent() != nil && !cmd.Parent().HasParent()
		if top && cmd.Name() != "help" && !slices.Contains(overview, cmd.Name()) {
			t.Errorf("%s is not in the overview", cmd.CommandPath())
		}
		switch {
		case cmd.Name() == "help":
		case cmd.Short == "" && cmd.HasParent(), cmd.Long == "":
			t.Errorf("%s does not say what it does", cmd.CommandPath())
		case top && cmd.Example == "":
			t.Errorf("%s shows no example", cmd.CommandPath())
		}
		for line := range strings.Lines(cmd.Long) {
			if len(strings.TrimSpace(line)) > 90 {
				t.Errorf("%s: a line is too long: %s", cmd.CommandPath(), line)
			}
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if kind := f.Value.Type(); kind != "bool" && kind == strings.ToLower(kind) && !strings.Contains(kind, "|") {
				t.Errorf("%s --%s takes a %q", cmd.CommandPath(), f.Name, kind)
			}
		})
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(new(program).rootCommand())
}

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
)

func (p *program) groupsCommand() *cobra.Command {
	list := func(cmd *cobra.Command) error { return p.listGroups(cmd.Context()) }
	cmd := &cobra.Command{
		Use:   "groups",
		Short: "names for several people",
		Long: `List, make, rename, disable and remove groups of users, and say who is in them. On the
VPS, or on the machine of an admin.

The policy may have groups of its own; one of the same name is the same group, of all
its members. Who is in a disabled group gets nothing by it, until it is enabled again;
what they get otherwise stays.`,
		Example: `  sudo overlayd groups add students alice carol
  sudo overlayd groups leave students carol
  sudo overlayd groups disable students`,
	}
	p.jsonFlag(cmd)
	return group(cmd, list, p.listVerb("list them", "List all groups; the same as overlayd groups.", list),
		p.groupVerb("add NAME [USER...]", "make a group", 1, func(ctx context.Context, c coordinator, args []string) (coord.Group, error) {
			return c.AddGroup(ctx, args[0], args[1:])
		}),
		p.groupVerb("rename GROUP NAME", "give a group another name", 2, func(ctx context.Context, c coordinator, args []string) (coord.Group, error) {
			return c.UpdateGroup(ctx, args[0], coord.GroupUpdate{Name: &args[1]})
		}),
		p.groupVerb("remove GROUP", "remove a group; its members stay", 1, func(ctx context.Context, c coordinator, args []string) (coord.Group, error) {
			return c.RemoveGroup(ctx, args[0])
		}),
		p.groupVerb("disable GROUP", "let its members get nothing by it", 1, func(ctx context.Context, c coordinator, args []string) (coord.Group, error) {
			return c.UpdateGroup(ctx, args[0], coord.GroupUpdate{Disabled: yes()})
		}),
		p.groupVerb("enable GROUP", "undo disable", 1, func(ctx context.Context, c coordinator, args []string) (coord.Group, error) {
			return c.UpdateGroup(ctx, args[0], coord.GroupUpdate{Disabled: no()})
		}),
		p.groupVerb("join GROUP USER...", "put people into a group", 2, func(ctx context.Context, c coordinator, args []string) (coord.Group, error) {
			return c.UpdateGroup(ctx, args[0], coord.GroupUpdate{AddMembers: args[1:]})
		}),
		p.groupVerb("leave GROUP USER...", "take people out of a group", 2, func(ctx context.Context, c coordinator, args []string) (coord.Group, error) {
			return c.UpdateGroup(ctx, args[0], coord.GroupUpdate{RemoveMembers: args[1:]})
		}),
	)
}

// groupVerb is a verb that does one thing to one group.
func (p *program) groupVerb(use, short string, least int, do func(context.Context, coordinator, []string) (coord.Group, error)) *cobra.Command {
	verb, what, _ := strings.Cut(use, " ")
	most := least
	if strings.HasSuffix(use, "...") || strings.HasSuffix(use, "...]") {
		most = 1000
	}
	cmd := &cobra.Command{
		Use: use, Short: short, Long: strings.ToUpper(short[:1]) + short[1:] + ".",
		Example: "  sudo overlayd groups " + verb + " " + groupExamples[what],
		Args:    words(least, most, what),
		RunE: func(cmd *cobra.Command, args []string) error {
			g, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.Group, error) { return do(ctx, c, args) })
			if err != nil {
				return err
			}
			switch verb {
			case "remove", "disable", "enable":
				return p.tell(newGroupJSON(g), "%sd %s", verb, g.Name)
			}
			return p.tell(newGroupJSON(g), "%s: %s", g.Name, orNone(g.Members))
		},
	}
	if verb != "add" {
		cmd.ValidArgsFunction = p.completeFirst(p.groupNames)
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) listGroups(ctx context.Context) error {
	groups, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.Group, error) { return c.Groups(ctx) })
	if err != nil {
		return err
	}
	list := []groupJSON{}
	var t table
	t.row("GROUP", "STATE", "MEMBERS")
	for _, g := range groups {
		list = append(list, newGroupJSON(g))
		state := "active"
		if g.Disabled {
			state = "disabled"
		}
		t.row(g.Name, state, orUnknown(strings.Join(g.Members, ", ")))
	}
	switch {
	case p.common.json:
		return printJSON(p.stdout, struct {
			Schema string      `json:"schema"`
			Groups []groupJSON `json:"groups"`
		}{"overlayd.groups/v1", list})
	case len(list) == 0:
		fmt.Fprintln(p.stderr, "there are no groups but those in the policy")
	default:
		t.write(p.stdout)
	}
	return nil
}

// groupJSON is a group in --json output. Fields are only ever added.
type groupJSON struct {
	ID       string   `json:"id"`
	Name     string   `json:"name"`
	Members  []string `json:"members"`
	Disabled bool     `json:"disabled"`
}

func newGroupJSON(g coord.Group) groupJSON {
	return groupJSON{g.ID, g.Name, notNil(g.Members), g.Disabled}
}

// groupExamples are words for a verb, by what it takes.
var groupExamples = map[string]string{
	"NAME [USER...]": "students alice carol", "GROUP NAME": "students class-of-2026", "GROUP": "students", "GROUP USER...": "students carol",
}

func (p *program) groupNames(ctx context.Context) (names []string) {
	groups, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.Group, error) { return c.Groups(ctx) })
	if err != nil {
		return nil
	}
	for _, g := range groups {
		names = append(names, g.Name)
	}
	return names
}

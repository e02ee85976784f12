package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
)

func (p *program) nodesCommand() *cobra.Command {
	list := func(cmd *cobra.Command) error { return p.listNodes(cmd.Context()) }
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "list, approve, tag and remove members",
		Long: `List, add, rename, approve, tag, disable and remove the members of the network. On the
VPS, or on the machine of an admin.

A NODE is named by its name, its address or its id.`,
		Example: `  sudo overlayd nodes
  sudo overlayd nodes rename debian lab-gw
  sudo overlayd nodes remove laptop`,
	}
	p.jsonFlag(cmd)
	return group(cmd, list, p.listVerb("list them", "List the members of the network; the same as overlayd nodes.", list),
		p.addNodeCommand(), p.renameNodeCommand(), p.removeNodeCommand(),
		p.nodeVerb("approve", "let a member in that waits", "approved", coord.NodeUpdate{Approve: true}),
		p.nodeVerb("disable", "let a member reach nothing, until enabled", "disabled", coord.NodeUpdate{Disabled: yes()}),
		p.nodeVerb("enable", "undo disable", "enabled", coord.NodeUpdate{Disabled: no()}),
		p.tagNodeCommand("tag", "give a member tags", func(tags []string) coord.NodeUpdate { return coord.NodeUpdate{AddTags: tags} }),
		p.tagNodeCommand("untag", "take tags from a member", func(tags []string) coord.NodeUpdate { return coord.NodeUpdate{RemoveTags: tags} }),
		p.giveNodeCommand(), p.renewNodeCommand())
}

// addNodeCommand is invite in the words of nodes.
func (p *program) addNodeCommand() *cobra.Command {
	var i coord.Invite
	ttl := span(coord.DefaultInviteTTL)
	cmd := &cobra.Command{
		Use: "add NAME", Short: "make a link that admits a machine of that name",
		Long: `Make a link that admits one machine under a name, and print it alone on standard
output: the same as overlayd invite --name NAME, which takes more flags. The machine
is a member when it has run overlayd up LINK.`,
		Example: "  sudo overlayd nodes add laptop --user alice",
		Args:    words(1, 1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var wished name
			if err := wished.Set(args[0]); err != nil {
				return valueFault("NAME", err)
			}
			i.Name, i.Uses, i.TTL = string(wished), 1, time.Duration(ttl)
			return p.invite(cmd.Context(), i)
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(text{&i.User, "USER"}, "user", "whose machine it is to be (default: a user of its own)")
	f.BoolVar(&i.NeedsApproval, "approve-later", false, "the machine waits until it is approved")
	f.Var(&ttl, "ttl", "for how long the link can be used")
	p.completeFlag(cmd, "user", p.userNames)
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) renameNodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rename NODE NAME", Short: "give a member another name",
		Long:    "Give a member another name. Its address stays, and so do its connections.",
		Example: "  sudo overlayd nodes rename debian lab-gw",
		Args:    words(2, 2, "NODE and NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var to name
			if err := to.Set(args[1]); err != nil {
				return valueFault("NAME", err)
			}
			n, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.NodeInfo, error) {
				return c.RenameNode(ctx, args[0], string(to))
			})
			if err != nil {
				return err
			}
			return p.tellNode("%s is now called %s\n", args[0], n)
		},
		ValidArgsFunction: p.completeFirst(p.nodeNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) removeNodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove NODE", Short: "take a member out of the network",
		Long: `Take a member out of the network: every other member forgets its key, and the
relay carries nothing for it any more. To come back it needs a new invite.`,
		Example: "  sudo overlayd nodes remove laptop",
		Args:    words(1, 1, "one NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.NodeInfo, error) {
				return c.RemoveNode(ctx, args[0])
			})
			if err != nil {
				return err
			}
			return p.tellNode("removed %[2]s\n", args[0], n)
		},
		ValidArgsFunction: p.completeFirst(p.nodeNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) renewNodeCommand() *cobra.Command {
	var ttl lifetime
	cmd := &cobra.Command{
		Use: "renew NODE", Short: "let a member's key hold for another while",
		Long: `Let the key of a person's machine hold from now on for another while: as long as when it
joined, or as --for said last. Nothing is interrupted, and a machine whose key has
expired is back at once. Keys of gateways and relays do not expire.`,
		Example: "  sudo overlayd nodes renew laptop\n  sudo overlayd nodes renew build-server --for never",
		Args:    words(1, 1, "one NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.NodeInfo, error) {
				return c.RenewNode(ctx, args[0], time.Duration(ttl))
			})
			if err != nil {
				return err
			}
			if n.Expires.IsZero() {
				return p.tell(newNodeJSON(n), "renewed %s: it does not expire", n.Name)
			}
			return p.tell(newNodeJSON(n), "renewed %s until %s", n.Name, n.Expires.UTC().Format(time.RFC3339))
		},
		ValidArgsFunction: p.completeFirst(p.nodeNames),
	}
	cmd.Flags().Var(&ttl, "for", "how long, this time and when it is renewed again (default: as long as before)")
	p.jsonFlag(cmd)
	return cmd
}

// nodeVerb is a verb that does one thing to one node.
func (p *program) nodeVerb(verb, short, done string, up coord.NodeUpdate) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " NODE", Short: short, Long: strings.ToUpper(short[:1]) + short[1:] + ".",
		Example: "  sudo overlayd nodes " + verb + " laptop",
		Args:    words(1, 1, "one NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := p.updateNode(cmd.Context(), args[0], up)
			if err != nil {
				return err
			}
			return p.tell(newNodeJSON(n), "%s %s", done, n.Name)
		},
		ValidArgsFunction: p.completeFirst(p.nodeNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) updateNode(ctx context.Context, node string, up coord.NodeUpdate) (coord.NodeInfo, error) {
	return admin(ctx, p, func(ctx context.Context, c coordinator) (coord.NodeInfo, error) { return c.UpdateNode(ctx, node, up) })
}

func (p *program) tagNodeCommand(verb, short string, up func([]string) coord.NodeUpdate) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " NODE TAG...", Short: short, Long: strings.ToUpper(short[:1]) + short[1:] + ", which the policy names as tag:TAG.",
		Example: "  sudo overlayd nodes " + verb + " build-server ci",
		Args:    words(2, 100, "NODE and TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := p.updateNode(cmd.Context(), args[0], up(args[1:]))
			if err != nil {
				return err
			}
			return p.tell(newNodeJSON(n), "%s has the tags: %s", n.Name, orNone(n.Tags))
		},
		ValidArgsFunction: p.completeFirst(p.nodeNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) giveNodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "give NODE USER", Short: "say whose a member is",
		Long:    "Say whose machine a member is. It reaches what its user may.",
		Example: "  sudo overlayd nodes give laptop alice",
		Args:    words(2, 2, "NODE and USER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			n, err := p.updateNode(cmd.Context(), args[0], coord.NodeUpdate{User: &args[1]})
			if err != nil {
				return err
			}
			return p.tell(newNodeJSON(n), "%s is %s's", n.Name, n.User)
		},
		ValidArgsFunction: p.completeFirst(p.nodeNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

// tellNode prints what a verb did to a node; format gets what the user called
// it and its name.
func (p *program) tellNode(format, called string, n coord.NodeInfo) error {
	if p.common.json {
		return printJSON(p.stdout, newNodeJSON(n))
	}
	_, err := fmt.Fprintf(p.stdout, format, called, n.Name)
	return err
}

func (p *program) listNodes(ctx context.Context) error {
	nodes, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.NodeInfo, error) {
		return c.Nodes(ctx)
	})
	if err != nil {
		return err
	}
	if p.common.json {
		list := make([]nodeJSON, 0, len(nodes))
		for _, n := range nodes {
			list = append(list, newNodeJSON(n))
		}
		return printJSON(p.stdout, struct {
			Schema string     `json:"schema"`
			Nodes  []nodeJSON `json:"nodes"`
		}{"overlayd.nodes/v1", list})
	}
	nodeTable(nodes, p.now()).write(p.stdout)
	return nil
}

// soon is when the end of a member's key is told of in the list.
const soon = 30 * 24 * time.Hour

func nodeTable(nodes []coord.NodeInfo, now time.Time) table {
	var t table
	t.row("NODE", "ADDRESS", "USER", "ROLE", "STATE", "TAGS", "ROUTES", "JOINED", "ID")
	names := map[string]string{}
	for _, n := range nodes {
		names[n.ID] = n.Name
	}
	for _, n := range nodes {
		state := "offline"
		switch {
		case n.State == coord.NodePending:
			state = "waits for approval"
		case n.State != coord.NodeActive && n.State != "":
			state = string(n.State)
		case n.Online:
			state = "online"
		case !n.LastSeen.IsZero():
			state = "away " + roughly(now.Sub(n.LastSeen))
		}
		if left := n.Expires.Sub(now); n.State == coord.NodeActive && !n.Expires.IsZero() && left < soon {
			state += ", expires in " + roughly(left)
		}
		routes := unknown
		for i, r := range n.Routes {
			if i == 0 {
				routes = r.Prefix.String()
			} else {
				routes += "," + r.Prefix.String()
			}
			if !r.Approved {
				routes += " (waits)"
			}
		}
		t.row(n.Name, addrsText(n.Addrs), orUnknown(n.User), roleText(n.Node, names), state, orUnknown(strings.Join(n.Tags, ",")), routes, n.Joined.UTC().Format(time.DateOnly), n.ID)
	}
	return t
}

// roleText says what a node is for, or who carries it; names are nodes' by id.
func roleText(n coord.Node, names map[string]string) string {
	switch {
	case n.Host == "":
		return string(n.Role)
	case n.Seat:
		return "seat at " + names[n.Host]
	}
	return "device at " + names[n.Host]
}

// nodeJSON is a member in --json output. Fields are only ever added.
type nodeJSON struct {
	ID         string       `json:"id"`
	Name       string       `json:"name"`
	IPs        []netip.Addr `json:"ips"`
	Role       string       `json:"role"`
	Online     bool         `json:"online"`
	PublicKey  string       `json:"public_key"`
	MachineKey string       `json:"machine_key"`
	JoinedAt   *time.Time   `json:"joined_at"`
	LastSeenAt *time.Time   `json:"last_seen_at"`
	Routes     []routeJSON  `json:"routes"`
	User       string       `json:"user"` // empty: nobody's
	Tags       []string     `json:"tags"`
	State      string       `json:"state"` // active, pending, disabled, expired
	ExpiresAt  *time.Time   `json:"expires_at"`
	Host       string       `json:"host"` // the id of the member that carries it; empty: it stands by itself
	Seat       bool         `json:"seat"` // carried, with an address of the carrier's own and no key
}

type routeJSON struct {
	Prefix   netip.Prefix `json:"prefix"`
	Approved bool         `json:"approved"`
}

func newNodeJSON(n coord.NodeInfo) nodeJSON {
	j := nodeJSON{
		ID: n.ID, Name: n.Name, IPs: notNil(n.Addrs), Role: string(n.Role), Online: n.Online,
		PublicKey: n.WireGuard.String(), MachineKey: n.Machine.String(),
		JoinedAt: timeOrNull(n.Joined), LastSeenAt: timeOrNull(n.LastSeen), Routes: []routeJSON{},
		User: n.User, Tags: notNil(n.Tags), State: string(n.State), ExpiresAt: timeOrNull(n.Expires),
		Host: n.Host, Seat: n.Seat,
	}
	if n.WireGuard.IsZero() {
		j.PublicKey = ""
	}
	if n.Machine.IsZero() {
		j.MachineKey = ""
	}
	for _, r := range n.Routes {
		j.Routes = append(j.Routes, routeJSON(r))
	}
	return j
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

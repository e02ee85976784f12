package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
)

func (p *program) inviteCommand() *cobra.Command {
	var (
		wished  name
		gateway prefixes
		relay   bool
		own     address
		uses    = number(1)
		ttl     = span(coord.DefaultInviteTTL)
		user    string
		approve bool
		keyTTL  lifetime
	)
	cmd := &cobra.Command{
		Use:   "invite",
		Short: "make a link that admits a machine",
		Long: `Make a link that admits a machine to the network, and print it alone on standard
output. On the VPS. Who has the link can join, so send it as you would a password;
it works once and for a day unless told otherwise.

With --user the machine is that user's, and reaches what the policy gives the user;
without, it gets a user of its own, named after it. With --approve-later it waits,
reaching nothing, until overlayd nodes approve.

With --gateway the machine is to run overlayd gateway, and may offer the prefix
without further approval. With --relay it is to run overlayd relay --join LINK: a
second VPS.`,
		Example: `  sudo overlayd invite --name lab-gw --gateway 192.168.1.0/24
  sudo overlayd invite --user alice --name laptop --ttl 1h
  sudo overlayd invite --relay --name vps2
  sudo overlayd invite --uses 20 --ttl 7d
  sudo overlayd invite revoke 7f3k2m`,
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(text{&user, "USER"}, "user", "whose machine it is to be")
	f.BoolVar(&approve, "approve-later", false, "the machine waits until it is approved")
	f.Var(&wished, "name", "what to call the machine (default: its host name)")
	f.Var(&gateway, "gateway", "network that the machine may offer; may be given several times")
	f.BoolVar(&relay, "relay", false, "for a further relay")
	f.Var(&own, "address", "its address inside (default: the next free one)")
	f.Var(&uses, "uses", "how many machines may join with it")
	f.Var(&ttl, "ttl", "for how long it can be used")
	f.Var(&keyTTL, "key-ttl", "how long the machine goes on until it is renewed (default: as the network says)")
	p.completeFlag(cmd, "user", p.userNames)
	p.jsonFlag(cmd)
	return group(cmd, func(cmd *cobra.Command) error {
		switch {
		case user != "" && (relay || len(gateway) > 0):
			return usage("leave --user out", "--user: a gateway or relay is nobody's own machine")
		case keyTTL != 0 && (relay || len(gateway) > 0):
			return usage("leave --key-ttl out", "--key-ttl: the key of a gateway or relay does not expire")
		case relay && len(gateway) > 0:
			return usage("make one invite for the relay and one for the gateway", "--relay and --gateway do not go together")
		case uses < 1:
			return usage("", "--uses: at least one machine has to be able to join")
		case uses > 1 && (wished != "" || own.IsValid()):
			return usage("leave --name and --address out", "--uses: %d machines cannot share one name or address", uses)
		}
		if a, b, ok := overlapping(gateway); ok {
			return usage("leave out "+b.String(), "--gateway: %s contains %s", a, b)
		}
		i := coord.Invite{Name: string(wished), Address: own.Addr, Routes: gateway, Uses: int(uses), TTL: time.Duration(ttl),
			User: user, NeedsApproval: approve, KeyTTL: time.Duration(keyTTL)}
		if relay {
			i.Role = coord.RoleRelay
		}
		return p.invite(cmd.Context(), i)
	}, p.listInvitesCommand(), p.revokeInviteCommand())
}

func (p *program) invite(ctx context.Context, i coord.Invite) error {
	l, err := admin(ctx, p, func(ctx context.Context, c coordinator) (coord.Link, error) { return c.Invite(ctx, i) })
	if err != nil {
		return err
	}
	if p.common.json {
		return printJSON(p.stdout, struct {
			Schema    string    `json:"schema"`
			Link      string    `json:"link"`
			ID        string    `json:"id"`
			ExpiresAt time.Time `json:"expires_at"`
		}{"overlayd.invite/v1", l.Encode(), l.Invite, p.now().Add(i.TTL).UTC().Truncate(time.Second)})
	}
	if _, err := fmt.Fprintln(p.stdout, l.Encode()); err != nil {
		return err
	}
	if p.terminal(p.stdout) || p.terminal(p.stderr) {
		fmt.Fprint(p.stderr, inviteText(i, l.Invite))
	}
	return nil
}

// inviteText says what to do with a link, without the link.
func inviteText(i coord.Invite, id string) string {
	command, where := "up LINK", "on the machine that is to join"
	switch {
	case len(i.Routes) > 0:
		command, where = "gateway LINK", "on a machine in "+joinAny(i.Routes, ", ")
	case i.Role == coord.RoleRelay:
		command, where = "relay --join LINK --public ADDRESS", "on the second VPS, with its own public address"
	}
	times := "once"
	if i.Uses > 1 {
		times = fmt.Sprintf("%d times", i.Uses)
	}
	return fmt.Sprintf(`
%s, within %s, %s:

  sudo overlayd %s

To take it back: sudo overlayd invite revoke %s
`, where, spanText(i.TTL), times, command, id)
}

func (p *program) listInvitesCommand() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "list", Short: "list invites", Args: words(0, 0, ""),
		Long: "List the invites that can still be used. The links themselves are not kept.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			invites, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) ([]coord.InviteInfo, error) {
				return c.Invites(ctx)
			})
			if err != nil {
				return err
			}
			return p.printInvites(invites, all)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "also those used up, expired or revoked")
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) printInvites(invites []coord.InviteInfo, all bool) error {
	list := []inviteJSON{}
	var t table
	t.row("INVITE", "STATE", "USED", "EXPIRES", "FOR", "ROLE", "ADDRESS", "ROUTES")
	for _, i := range invites {
		if !all && i.State != coord.InviteOpen {
			continue
		}
		list = append(list, newInviteJSON(i))
		own := unknown
		if i.Address.IsValid() {
			own = i.Address.String()
		}
		t.row(i.ID, string(i.State), fmt.Sprintf("%d of %d", i.Used, i.Uses), i.Expires.UTC().Format("2006-01-02 15:04 MST"),
			orUnknown(i.Name), string(i.Role), own, orUnknown(joinAny(i.Routes, ",")))
	}
	switch {
	case p.common.json:
		return printJSON(p.stdout, struct {
			Schema  string       `json:"schema"`
			Invites []inviteJSON `json:"invites"`
		}{"overlayd.invites/v1", list})
	case len(list) == 0:
		fmt.Fprintln(p.stderr, "no invite is open")
	default:
		t.write(p.stdout)
	}
	return nil
}

// inviteJSON is an invite in --json output. Fields are only ever added.
type inviteJSON struct {
	ID        string         `json:"id"`
	State     string         `json:"state"`
	Uses      int            `json:"uses"`
	Used      int            `json:"used"`
	CreatedAt *time.Time     `json:"created_at"`
	ExpiresAt *time.Time     `json:"expires_at"`
	Name      string         `json:"name"`
	Role      string         `json:"role"`
	Address   *netip.Addr    `json:"address"`
	Routes    []netip.Prefix `json:"routes"`

	User          string `json:"user"`
	NeedsApproval bool   `json:"needs_approval"`
}

func newInviteJSON(i coord.InviteInfo) inviteJSON {
	j := inviteJSON{
		ID: i.ID, State: string(i.State), Uses: i.Uses, Used: i.Used,
		CreatedAt: timeOrNull(i.Created), ExpiresAt: timeOrNull(i.Expires),
		Name: i.Name, Role: string(i.Role), Routes: notNil(i.Routes),
		User: i.User, NeedsApproval: i.NeedsApproval,
	}
	if i.Address.IsValid() {
		j.Address = &i.Address
	}
	return j
}

func (p *program) revokeInviteCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke ID", Short: "make a link worthless",
		Long:    "Make a link worthless. Machines that joined with it stay; see overlayd nodes remove.",
		Example: "  sudo overlayd invite revoke 7f3k2m",
		Args:    words(1, 1, "one ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			if l, err := coord.ParseLink(id); err == nil {
				id = l.Invite // somebody pasted the link itself
			}
			_, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (struct{}, error) {
				return struct{}{}, c.RevokeInvite(ctx, id)
			})
			if err != nil {
				return err
			}
			return p.tell(struct {
				Schema  string `json:"schema"`
				Revoked string `json:"revoked"`
			}{"overlayd.invite_revoked/v1", id}, "revoked %s", oneLine(id))
		},
		ValidArgsFunction: p.completeFirst(p.inviteIDs),
	}
	p.jsonFlag(cmd)
	return cmd
}

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
)

func (p *program) usersCommand() *cobra.Command {
	list := func(cmd *cobra.Command) error { return p.listUsers(cmd.Context()) }
	cmd := &cobra.Command{
		Use:   "users",
		Short: "list, add, disable and remove people",
		Long: `List, add, rename, disable and remove the people whose machines are in the network.
On the VPS, or on the machine of an admin.

A user has any number of machines: overlayd invite --user NAME admits one. A machine
that was invited for nobody in particular gets a user of its own, named after it.

Without overlayd a person may come through the relay's jump host, with an ssh key, and
to published pages, with a password and codes: see the verbs below.

Who is disabled reaches nothing, from no machine, until enabled again; overlayd
revoke does the same and waits until every machine has applied it. Who is removed
takes the machines, grants, requests and open invites along.`,
		Example: `  sudo overlayd users
  sudo overlayd users add alice --group students
  sudo overlayd users disable alice`,
	}
	p.jsonFlag(cmd)
	return group(cmd, list, p.listVerb("list them", "List all users; the same as overlayd users.", list), p.addUserCommand(), p.renameUserCommand(),
		p.userVerb("remove", "remove a person, with all machines", "removed", func(ctx context.Context, c coordinator, user string) (coord.User, error) {
			return c.RemoveUser(ctx, user)
		}),
		p.userVerb("disable", "let a person reach nothing", "disabled", updateUser(coord.UserUpdate{Disabled: yes()})),
		p.userVerb("enable", "undo disable", "enabled", updateUser(coord.UserUpdate{Disabled: no()})),
		p.tagUserCommand("tag", "give a person tags", func(tags []string) coord.UserUpdate { return coord.UserUpdate{AddTags: tags} }),
		p.tagUserCommand("untag", "take tags from a person", func(tags []string) coord.UserUpdate { return coord.UserUpdate{RemoveTags: tags} }),
		p.addKeyCommand(), p.keysCommand(), p.removeKeyCommand(), p.setPasswordCommand(), p.totpCommand(),
	)
}

func yes() *bool { v := true; return &v }
func no() *bool  { return new(bool) }

// listVerb is the verb list below a verb that lists alone, too.
func (p *program) listVerb(short, long string, list func(*cobra.Command) error) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: short, Args: words(0, 0, ""), Long: long,
		RunE: func(cmd *cobra.Command, _ []string) error { return list(cmd) },
	}
	p.jsonFlag(cmd)
	return cmd
}

func updateUser(up coord.UserUpdate) func(context.Context, coordinator, string) (coord.User, error) {
	return func(ctx context.Context, c coordinator, user string) (coord.User, error) {
		return c.UpdateUser(ctx, user, up)
	}
}

func (p *program) addUserCommand() *cobra.Command {
	var groups, tags nameList
	cmd := &cobra.Command{
		Use: "add NAME", Short: "add a person",
		Long:    "Add a person. Groups have to be there already: overlayd groups add.",
		Example: "  sudo overlayd users add alice --group students",
		Args:    words(1, 1, "one NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.User, error) {
				return c.AddUser(ctx, args[0], groups, tags)
			})
			if err != nil {
				return err
			}
			return p.tell(newUserJSON(u), "added %s; invite a machine with: overlayd invite --user %s", u.Name, u.Name)
		},
	}
	cmd.Flags().Var(&groups, "group", "a group to be in; may be given several times")
	cmd.Flags().Var(&tags, "tag", "a tag that the policy may name; may be given several times")
	p.completeFlag(cmd, "group", p.groupNames)
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) renameUserCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rename USER NAME", Short: "give a person another name",
		Long:    "Give a person another name. While the policy names the old one it is refused.",
		Example: "  sudo overlayd users rename alice alice.b",
		Args:    words(2, 2, "USER and NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.User, error) {
				return c.UpdateUser(ctx, args[0], coord.UserUpdate{Name: &args[1]})
			})
			if err != nil {
				return err
			}
			return p.tell(newUserJSON(u), "%s is now called %s", args[0], u.Name)
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

// userVerbs say more about what the verbs do, by what they say first.
var userVerbs = map[string]string{
	"remove a person, with all machines": ` Grants, requests and open invites
go too. To come back, each machine has to be invited again.`,
	"let a person reach nothing": ` Nor is any of the person's machines reached, until
enabled again. overlayd revoke does this, ends grants and open invites too, and waits
until every machine has applied it.`,
	"undo disable": ` It undoes revoke as well, but brings no grants and invites back.`,
}

// userVerb is a verb that does one thing to one user.
func (p *program) userVerb(verb, short, done string, do func(context.Context, coordinator, string) (coord.User, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " USER", Short: short, Long: strings.ToUpper(short[:1]) + short[1:] + "." + userVerbs[short],
		Example: "  sudo overlayd users " + verb + " alice",
		Args:    words(1, 1, "one USER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.User, error) { return do(ctx, c, args[0]) })
			if err != nil {
				return err
			}
			return p.tell(newUserJSON(u), "%s %s", done, u.Name)
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) tagUserCommand(verb, short string, up func([]string) coord.UserUpdate) *cobra.Command {
	cmd := &cobra.Command{
		Use: verb + " USER TAG...", Short: short, Long: strings.ToUpper(short[:1]) + short[1:] + ", which the policy names as tag:TAG.",
		Example: "  sudo overlayd users " + verb + " alice night-shift",
		Args:    words(2, 100, "USER and TAG"),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.User, error) {
				return c.UpdateUser(ctx, args[0], up(args[1:]))
			})
			if err != nil {
				return err
			}
			return p.tell(newUserJSON(u), "%s has the tags: %s", u.Name, orNone(u.Tags))
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

// orNone joins names, or says that there are none.
func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// tell prints what was done, as an object or in words.
func (p *program) tell(v any, format string, args ...any) error {
	if p.common.json {
		return printJSON(p.stdout, v)
	}
	_, err := fmt.Fprintf(p.stdout, format+"\n", args...)
	return err
}

// warn says on standard error what may be a slip, a line each.
func (p *program) warn(lines ...string) {
	for _, l := range lines {
		fmt.Fprintln(p.stderr, "warning: "+withoutLinks(oneLine(l)))
	}
}

func (p *program) listUsers(ctx context.Context) error {
	users, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.User, error) { return c.Users(ctx) })
	if err != nil {
		return err
	}
	list := []userJSON{}
	var t table
	t.row("USER", "STATE", "GROUPS", "TAGS", "MACHINES", "SINCE")
	for _, u := range users {
		state := "active"
		switch {
		case u.Disabled:
			state = "disabled"
		case u.Admin:
			state = "admin"
		}
		list = append(list, newUserJSON(u))
		t.row(u.Name, state, orUnknown(strings.Join(u.Groups, ",")), orUnknown(strings.Join(u.Tags, ",")),
			orUnknown(strings.Join(u.Nodes, ",")), u.Created.UTC().Format(time.DateOnly))
	}
	switch {
	case p.common.json:
		return printJSON(p.stdout, struct {
			Schema string     `json:"schema"`
			Users  []userJSON `json:"users"`
		}{"overlayd.users/v1", list})
	case len(list) == 0:
		fmt.Fprintln(p.stderr, "there are no users yet")
	default:
		t.write(p.stdout)
	}
	return nil
}

// userJSON is a user in --json output. Fields are only ever added.
type userJSON struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Admin     bool       `json:"admin"`
	Disabled  bool       `json:"disabled"`
	Tags      []string   `json:"tags"`
	Groups    []string   `json:"groups"`
	Nodes     []string   `json:"nodes"`
	CreatedAt *time.Time `json:"created_at"`
	SSHKeys   int        `json:"ssh_keys"`
	Password  bool       `json:"password"`
	Codes     bool       `json:"codes"`
}

func newUserJSON(u coord.User) userJSON {
	return userJSON{
		ID: u.ID, Name: u.Name, Admin: u.Admin, Disabled: u.Disabled, Tags: notNil(u.Tags), Groups: notNil(u.Groups),
		Nodes: notNil(u.Nodes), CreatedAt: timeOrNull(u.Created), SSHKeys: u.SSHKeys, Password: u.Password, Codes: u.Codes,
	}
}

func (p *program) userNames(ctx context.Context) (names []string) {
	users, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.User, error) { return c.Users(ctx) })
	if err != nil {
		return nil
	}
	for _, u := range users {
		names = append(names, u.Name)
	}
	return names
}

// nameList is a flag that may be given several times.
type nameList []string

func (l *nameList) Set(s string) error {
	for _, word := range strings.Split(s, ",") {
		if word = strings.TrimSpace(word); word != "" {
			*l = append(*l, word)
		}
	}
	return nil
}

func (l *nameList) String() string { return strings.Join(*l, ", ") }
func (l *nameList) Type() string   { return "NAME" }
func (l *nameList) isList()        {}

// adminCommand gives and takes the role of an admin.
func (p *program) adminCommand() *cobra.Command {
	list := func(cmd *cobra.Command) error { return p.listAdmins(cmd.Context()) }
	cmd := &cobra.Command{
		Use:   "admin",
		Short: "who may administer the network from their own machine",
		Long: `List the users who may administer the network from their own machines, make one of
a user, or take it back. On the VPS root may always do everything. What an admin does
is recorded with the name; what others try is refused, and recorded too.

Administration goes over the coordinator's API, which no policy can close.`,
		Example: `  sudo overlayd admin add bob
  sudo overlayd admin remove bob`,
	}
	p.jsonFlag(cmd)
	verb := func(name, short, done string, up coord.UserUpdate) *cobra.Command {
		cmd := p.userVerb(name, short, done, updateUser(up))
		cmd.Example = "  sudo overlayd admin " + name + " bob"
		return cmd
	}
	return group(cmd, list, p.listVerb("list them", "List the admins; the same as overlayd admin.", list),
		verb("add", "make a user an admin", "made admin:", coord.UserUpdate{Admin: yes()}),
		verb("remove", "take the role from a user", "no admin any more:", coord.UserUpdate{Admin: no()}),
	)
}

func (p *program) listAdmins(ctx context.Context) error {
	users, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.User, error) { return c.Users(ctx) })
	if err != nil {
		return err
	}
	list := []userJSON{}
	for _, u := range users {
		if u.Admin {
			list = append(list, newUserJSON(u))
		}
	}
	if p.common.json {
		return printJSON(p.stdout, struct {
			Schema string     `json:"schema"`
			Admins []userJSON `json:"admins"`
		}{"overlayd.admins/v1", list})
	}
	if len(list) == 0 {
		fmt.Fprintln(p.stderr, "nobody but root on the VPS")
	}
	for _, u := range list {
		fmt.Fprintln(p.stdout, u.Name)
	}
	return nil
}

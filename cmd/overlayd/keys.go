package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
)

func (p *program) addKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add-key USER FILE", Short: "let a person use the jump host with an ssh key",
		Long: `Let whoever holds an ssh key be a person at the relay's jump host (overlayd relay
--ssh). FILE is the public key, as ssh-keygen made it; - is standard input. A key
belongs to one person.`,
		Example: `  sudo overlayd users add-key alice id_ed25519.pub
  curl https://example.org/alice.keys | sudo overlayd users add-key alice -`,
		Args: words(2, 2, "USER and FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := p.readSmall(args[1])
			if err != nil {
				return err
			}
			if _, err := coord.ParseSSHKey(text); err != nil { // a private key does not leave this machine
				return fmt.Errorf("key %s: %w", args[1], err)
			}
			k, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.SSHKey, error) {
				return c.AddSSHKey(ctx, args[0], text)
			})
			if err != nil {
				return err
			}
			return p.tell(newKeyJSON(k), "added a key of %s: %s", k.User, k.Fingerprint)
		},
		ValidArgsFunction: p.completeThenFiles(p.userNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

// completeThenFiles completes the first word, and files after it.
func (p *program) completeThenFiles(s source) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return p.complete(cmd, s)
	}
}

// maxSmall holds a key or a certificate with its chain.
const maxSmall = 64 << 10

// readSmall reads a file of keys or certificates; - is standard input.
func (p *program) readSmall(name string) (string, error) {
	in := p.stdin
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxSmall+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > maxSmall {
		return "", usage("", "%s is longer than %d bytes", name, maxSmall)
	}
	return string(b), nil
}

func (p *program) keysCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "keys [USER]", Short: "list ssh keys",
		Long:    "List a person's ssh keys for the jump host, or everybody's.",
		Example: "  sudo overlayd users keys alice",
		Args:    words(0, 1, "USER or nothing"),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) ([]coord.SSHKey, error) {
				return c.SSHKeys(ctx, strings.Join(args, ""))
			})
			if err != nil {
				return err
			}
			list := []keyJSON{}
			var t table
			t.row("USER", "TYPE", "FINGERPRINT", "COMMENT", "SINCE")
			for _, k := range keys {
				list = append(list, newKeyJSON(k))
				t.row(k.User, k.Type, k.Fingerprint, orUnknown(k.Comment), k.Created.UTC().Format(time.DateOnly))
			}
			switch {
			case p.common.json:
				return printJSON(p.stdout, struct {
					Schema string    `json:"schema"`
					Keys   []keyJSON `json:"keys"`
				}{"overlayd.keys/v1", list})
			case len(list) == 0:
				fmt.Fprintln(p.stderr, "there are no keys; add one with: overlayd users add-key USER FILE")
			default:
				t.write(p.stdout)
			}
			return nil
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) removeKeyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove-key USER KEY", Short: "take an ssh key away",
		Long: `Take an ssh key away, and end the sessions that were begun with it. KEY is its
fingerprint, its comment, or - for the public key itself on standard input.`,
		Example: "  sudo overlayd users remove-key alice SHA256:0vYw...",
		Args:    words(2, 2, "USER and KEY"),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref := args[1]
			if ref == "-" {
				var err error
				if ref, err = p.readSmall(ref); err != nil {
					return err
				}
			}
			k, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.SSHKey, error) {
				return c.RemoveSSHKey(ctx, args[0], ref)
			})
			if err != nil {
				return err
			}
			return p.tell(newKeyJSON(k), "removed a key")
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

// keyJSON is an ssh key in --json output. Fields are only ever added.
type keyJSON struct {
	User        string     `json:"user"`
	Type        string     `json:"type"`
	Fingerprint string     `json:"fingerprint"`
	Comment     string     `json:"comment"`
	CreatedAt   *time.Time `json:"created_at"`
}

func newKeyJSON(k coord.SSHKey) keyJSON {
	return keyJSON{k.User, k.Type, k.Fingerprint, k.Comment, timeOrNull(k.Created)}
}

func (p *program) setPasswordCommand() *cobra.Command {
	var own, remove bool
	cmd := &cobra.Command{
		Use: "set-password USER", Short: "make a password for published pages",
		Long: `Make a password with which a person logs in to published pages (overlayd expose
--login), and print it: it is kept as a hash only. With --stdin it is the first line
of standard input instead. Whoever has logged in has to again. A login takes a code of
an authenticator app too: overlayd users totp.`,
		Example: `  sudo overlayd users set-password alice
  sudo overlayd users set-password alice --remove`,
		Args: words(1, 1, "one USER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if own && remove {
				return usage("give one of them", "--stdin and --remove do not go together")
			}
			if remove {
				u, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.User, error) { return c.RemovePassword(ctx, args[0]) })
				if err != nil {
					return err
				}
				return p.tell(newUserJSON(u), "%s has no password and no codes any more", u.Name)
			}
			password := ""
			if own {
				text, err := p.readSmall("-")
				if err != nil {
					return err
				}
				if password, _, _ = strings.Cut(text, "\n"); strings.TrimSuffix(password, "\r") == "" {
					return usage("", "standard input holds no password")
				}
				password = strings.TrimSuffix(password, "\r")
			}
			return p.setPassword(cmd.Context(), args[0], password)
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	cmd.Flags().BoolVar(&own, "stdin", false, "take the first line of standard input")
	cmd.Flags().BoolVar(&remove, "remove", false, "take password and codes away")
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) setPassword(ctx context.Context, user, password string) error {
	var u coord.User
	made, err := admin(ctx, p, func(ctx context.Context, c coordinator) (made string, err error) {
		made, u, err = c.SetPassword(ctx, user, password)
		return made, err
	})
	if err != nil {
		return err
	}
	if p.common.json {
		return printJSON(p.stdout, struct {
			User     string `json:"user"`
			Password string `json:"password"`
		}{u.Name, made})
	}
	if made != "" {
		fmt.Fprintln(p.stdout, made)
	}
	if !u.Codes {
		fmt.Fprintf(p.stderr, "now the codes: overlayd users totp %s\n", u.Name)
	}
	return nil
}

func (p *program) totpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "totp USER", Short: "make codes for an authenticator app",
		Long: `Make the secret of a person's codes anew, and print it: as a link, on a terminal also as
the QR code that an authenticator app scans, and as text to type. It is shown this once.
An app that had the one before shows wrong codes from now on.`,
		Example: `  sudo overlayd users totp alice`,
		Args:    words(1, 1, "one USER"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var seed string
			uri, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (uri string, err error) {
				uri, seed, err = c.MakeSeed(ctx, args[0])
				return uri, err
			})
			if err != nil {
				return err
			}
			if err := p.tell(struct {
				User   string `json:"user"`
				URI    string `json:"uri"`
				Secret string `json:"secret"`
			}{args[0], uri, seed}, "%s\n%s", uri, seed); err != nil || p.common.json {
				return err
			}
			return p.drawQR(uri)
		},
		ValidArgsFunction: p.completeFirst(p.userNames),
	}
	p.jsonFlag(cmd)
	return cmd
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay/coord"
)

// exposeFlags are what one run of expose is told.
type exposeFlags struct {
	on        listenAddress
	proto     choice
	allow     clientPrefixes
	ttl       span
	host      string
	tls       choice
	cert, key string
	directory string
	ca        string
	login     bool
	proxy     bool
}

func (p *program) exposeCommand() *cobra.Command {
	f := exposeFlags{proto: choice{words: []string{coord.ExposeTCP, coord.ExposeUDP, coord.ExposeHTTP}}, tls: choice{words: []string{coord.TLSACME, coord.TLSSelf}}}
	cmd := &cobra.Command{
		Use:   "expose TARGET --on [HOST]:PORT",
		Short: "publish one port of the network on the VPS",
		Long: `Publish one port of the network on the first relay's machine: whoever connects there
comes out at TARGET, a HOST:PORT behind a gateway or a machine's. On the VPS, or on the
machine of an admin. Nothing is published unless you say so here.

Connections leave under the name of whoever published the port, as far as the policy
lets that person; those of root on the VPS as the relay itself, and those of a page
with --login as whoever has logged in. overlayd revoke and expose remove end them at
once. While the target is away TCP is refused, and a page says so with status 503.

With --proto http the target gets X-Forwarded-For, -Host and -Proto, and X-Forwarded-User
with --login. --tls acme asks Let's Encrypt, or --acme-directory, for a certificate for
--host, which needs port 443 or 80 of the VPS; --tls self makes one that browsers warn
of. Several names share a port, each with a target and options of its own. --login takes
name, password and code: overlayd users set-password, totp.`,
		Example: `  sudo overlayd expose 192.168.1.10:80 --on :8080 --allow 198.51.100.0/24 --ttl 8h
  sudo overlayd expose nas:443 --on :8443 --proxy-protocol
  overlayd expose 192.168.1.10:80 --on :8443 --proto http --host nas.example.org --tls acme --login
  overlayd expose list
  overlayd expose remove :8080`,
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.Var(&f.on, "on", "port of the VPS, on all its addresses or one")
	flags.Var(&f.proto, "proto", "what passes (default: tcp)")
	flags.Var(&f.allow, "allow", "only these clients; may be given several times")
	flags.Var(&f.ttl, "ttl", "for how long, e.g. 8h (default: until it is removed)")
	flags.Var(text{&f.host, "NAME"}, "host", "the only name that it answers to, with --proto http")
	flags.Var(&f.tls, "tls", "where the certificate comes from")
	flags.Var(text{&f.cert, "FILE"}, "tls-cert", "or a certificate of your own, in PEM with its chain")
	flags.Var(text{&f.key, "FILE"}, "tls-key", "its private key; it goes to the VPS")
	flags.Var(text{&f.directory, "URL"}, "acme-directory", "another certificate authority's than Let's Encrypt's")
	flags.Var(text{&f.ca, "FILE"}, "acme-ca", "certificates that its own is checked with")
	flags.BoolVar(&f.login, "login", false, "only for users, with password and code; needs TLS")
	flags.BoolVar(&f.proxy, "proxy-protocol", false, "tell the target who connects: PROXY protocol, version 2")
	p.jsonFlag(cmd)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 || !strings.Contains(args[0], ":") {
			if len(args) == 1 && nearest(args[0], []string{"list", "remove"}) != "" {
				return unknownVerb(cmd, args[0])
			}
			return usage("e.g. overlayd expose 192.168.1.10:80 --on :8080; overlayd expose list shows what there is", "expose takes one TARGET, HOST:PORT")
		}
		return p.expose(cmd.Context(), args[0], f)
	}
	list := p.listVerb("list what is published", "List the published ports.", func(cmd *cobra.Command) error { return p.listExposures(cmd.Context()) })
	cmd.AddCommand(list, p.unexposeCommand())
	return cmd
}

func (p *program) expose(ctx context.Context, target string, f exposeFlags) error {
	want := coord.NewExposure{Exposure: coord.Exposure{
		Target: target, Protocol: f.proto.word, Allow: f.allow, Host: strings.ToLower(f.host), TLS: f.tls.word,
		ACME: coord.ACME{Directory: f.directory}, Login: f.login, Proxy: f.proxy,
	}, TTL: time.Duration(f.ttl)}
	if want.Protocol == "" {
		want.Protocol = coord.ExposeTCP
	}
	var err error
	switch {
	case f.on == "":
		return usage("e.g. --on :8080", "say with --on at which port of the VPS")
	case (f.cert == "") != (f.key == ""):
		return usage("give both", "--tls-cert and --tls-key belong together")
	case f.cert != "" && f.tls.word != "":
		return usage("leave --tls out", "--tls %s does not go together with a certificate of your own", f.tls.word)
	case (f.directory != "" || f.ca != "") && f.tls.word != coord.TLSACME:
		return usage("add --tls acme", "--acme-directory and --acme-ca say which authority is asked with --tls acme")
	case f.cert != "":
		want.TLS = coord.TLSGiven
		cert, cerr := p.readSmall(f.cert)
		key, kerr := p.readSmall(f.key)
		if cerr != nil || kerr != nil {
			return errorsOf(cerr, kerr)
		}
		want.Certificate, want.Key = []byte(cert), []byte(key)
	case f.ca != "":
		ca, err := p.readSmall(f.ca)
		if err != nil {
			return err
		}
		want.ACME.CA = []byte(ca)
	}
	if want.Listen, err = coord.ParseListen(string(f.on)); err != nil {
		return err
	}
	e, err := admin(ctx, p, func(ctx context.Context, c coordinator) (coord.Exposure, error) { return c.Expose(ctx, want) })
	if err != nil {
		return err
	}
	as := cmp.Or(e.User, "the relay")
	if e.Login {
		as = "whoever logs in"
	}
	text := fmt.Sprintf("%s: %s %s leads to %s, as %s", e.ID, e.Protocol, coord.PlaceText(e.Host, e.Listen), e.Target, as)
	if e.Fingerprint != "" && e.TLS == coord.TLSSelf {
		text += "\nits certificate's SHA-256 is " + e.Fingerprint
	}
	if err := p.tell(newExposureJSON(e), "%s", text); err != nil || e.Problem == "" {
		return err
	}
	_, err = fmt.Fprintf(p.stderr, "but nobody comes through now: %s\n", e.Problem)
	return err
}

// errorsOf returns the first error of some.
func errorsOf(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *program) unexposeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "remove EXPOSURE", Short: "close one, with all its connections",
		Long:    "Close a published port, and end all connections through it. EXPOSURE is its id, or its\nport as :8080, with its name where several share one: nas.example.org:8080.",
		Example: "  sudo overlayd expose remove :8080",
		Args:    words(1, 1, "one EXPOSURE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			closed := 0
			e, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (e coord.Exposure, err error) {
				e, closed, err = c.RemoveExposure(ctx, args[0])
				return e, err
			})
			if err != nil {
				return err
			}
			return p.tell(newExposureJSON(e), "removed %s: %s is closed, %d connections ended", e.ID, coord.PlaceText(e.Host, e.Listen), closed)
		},
		ValidArgsFunction: p.completeFirst(func(ctx context.Context) (ids []string) {
			list, err := p.exposures(ctx)
			if err != nil {
				return nil
			}
			for _, e := range list {
				ids = append(ids, e.ID)
			}
			return ids
		}),
	}
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) exposures(ctx context.Context) ([]coord.Exposure, error) {
	return admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.Exposure, error) { return c.Exposures(ctx) })
}

func (p *program) listExposures(ctx context.Context) error {
	exposures, err := p.exposures(ctx)
	if err != nil {
		return err
	}
	list := []exposureJSON{}
	var t table
	t.row("EXPOSURE", "ON", "TARGET", "PROTO", "TLS", "AS", "LEFT", "OPEN", "STATE")
	for _, e := range exposures {
		list = append(list, newExposureJSON(e))
		as, left, state := cmp.Or(e.User, "the relay"), orUnknown(""), e.State
		if e.Login {
			as = "login"
		}
		if !e.Until.IsZero() {
			left = roughly(e.Until.Sub(p.now()))
		}
		if e.Problem != "" {
			state += ": " + e.Problem
		}
		t.row(e.ID, coord.PlaceText(e.Host, e.Listen), e.Target, e.Protocol, orUnknown(e.TLS), as, left, fmt.Sprint(e.Connections), state)
	}
	switch {
	case p.common.json:
		return printJSON(p.stdout, struct {
			Schema    string         `json:"schema"`
			Exposures []exposureJSON `json:"exposures"`
		}{"overlayd.exposures/v1", list})
	case len(list) == 0:
		fmt.Fprintln(p.stderr, "nothing is published")
	default:
		t.write(p.stdout)
	}
	return nil
}

// exposureJSON is a published port in --json output. Fields are only ever added.
type exposureJSON struct {
	ID            string         `json:"id"`
	Target        string         `json:"target"`
	Listen        string         `json:"listen"`
	Protocol      string         `json:"protocol"`
	Allow         []netip.Prefix `json:"allow"`
	Host          string         `json:"host"`
	TLS           string         `json:"tls"`
	Fingerprint   string         `json:"certificate_sha256"`
	Login         bool           `json:"login"`
	ProxyProtocol bool           `json:"proxy_protocol"`
	User          string         `json:"user"`
	By            string         `json:"by"`
	CreatedAt     *time.Time     `json:"created_at"`
	Until         *time.Time     `json:"until"`
	State         string         `json:"state"`
	Problem       string         `json:"problem"`
	Connections   int            `json:"connections"`
}

func newExposureJSON(e coord.Exposure) exposureJSON {
	return exposureJSON{
		ID: e.ID, Target: e.Target, Listen: coord.ListenText(e.Listen), Protocol: e.Protocol, Allow: notNil(e.Allow), Host: e.Host,
		TLS: e.TLS, Fingerprint: e.Fingerprint, Login: e.Login, ProxyProtocol: e.Proxy, User: e.User, By: e.By,
		CreatedAt: timeOrNull(e.Created), Until: timeOrNull(e.Until), State: e.State, Problem: e.Problem, Connections: e.Connections,
	}
}

// clientPrefixes is a flag of whole networks or single addresses.
type clientPrefixes []netip.Prefix

func (l *clientPrefixes) Set(s string) error {
	for _, word := range strings.Split(s, ",") {
		word = strings.TrimSpace(word)
		if a, err := netip.ParseAddr(word); err == nil && a.Zone() == "" {
			*l = append(*l, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(word)
		switch {
		case err != nil:
			return hinted("write it as 198.51.100.0/24 or 198.51.100.7", "%q is no address and no prefix", word)
		case p != p.Masked():
			return hinted("did you mean "+p.Masked().String()+"?", "%s has host bits set", p)
		}
		*l = append(*l, p)
	}
	return nil
}

func (l *clientPrefixes) String() string { return joinAny(*l, ", ") }
func (l *clientPrefixes) Type() string   { return "PREFIX" }
func (l *clientPrefixes) isList()        {}

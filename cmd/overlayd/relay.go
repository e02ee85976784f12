package main

import (
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay"
	"overlayd/overlay/coord"
)

func (p *program) relayCommand() *cobra.Command {
	var (
		public  publicAddress
		listen  listenAddress
		prefix  overlayPrefix
		own     address
		wished  name
		cert    string
		certKey string
		join    string
		file    string
		keyTTL  lifetime
		ssh     listenAddress
	)
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "run the network's public machine",
		Long: `Run the one machine that everybody can reach: it admits members, carries their
ciphertext to each other, and is a member itself. It cannot read what it carries.
Runs until Ctrl-C or overlayd down; state is kept, so a restart disturbs nobody.

One port must be open in the firewall, for UDP and TCP. The address that --public
names goes into the invites.

With --join it becomes a further relay of a network that there is already: traffic
takes the nearer one, and goes on when one of them dies. Make the link on the first
one with overlayd invite --relay. It is needed once, as is --public.

With --ssh it is a jump host too, for people with nothing but OpenSSH:
ssh -J alice@203.0.113.10:2222 ubuntu@192.168.1.201. There is no shell on it. The
fingerprint of its key is in overlayd status.`,
		Example: `  sudo overlayd relay --public 203.0.113.10
  sudo overlayd relay --public vpn.example.org:8443 --listen :8443
  sudo overlayd relay --public 203.0.113.10 --overlay 172.18.0.0/24 --address 172.18.0.10
  sudo overlayd relay --public 203.0.113.10 --ssh :2222
  sudo overlayd relay --join LINK --public 198.51.100.10`,
		Args:        words(0, 0, ""),
		Annotations: map[string]string{daemonSettings: "yes"},
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case join == "" && cmd.Flags().Changed("join"):
				return usage("make one on the first relay with overlayd invite --relay", "--join: the link is empty")
			case own.IsValid() && prefix.IsValid() && !prefix.Contains(own.Addr):
				return usage("choose one inside, or another --overlay", "--address: %s is not in the overlay %s", own.Addr, prefix.Prefix)
			case (join != "" || file != "") && (prefix.IsValid() || own.IsValid()):
				return usage("leave out --overlay and --address: the network has its addresses already, and overlayd invite --relay --address names one",
					"--join does not go together with --overlay or --address")
			case (join != "" || file != "") && keyTTL != 0:
				return usage("say it on the first relay", "--join does not go together with --key-ttl")
			case join != "" && ssh != "":
				return usage("give --ssh to the first relay, which has the users' keys", "--join and --ssh do not go together")
			case (cert == "") != (certKey == ""):
				return usage("give both, or neither for a key that invites pin", "--tls-cert and --tls-key belong together")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := overlay.HubOptions{
				Options: p.common.options(), Public: string(public), Listen: string(listen), SSH: string(ssh),
				Overlay: prefix.Prefix, Address: own.Addr, TLSCert: cert, TLSKey: certKey,
				KeyTTL: time.Duration(keyTTL),
			}
			o.Name, o.Role = string(wished), coord.RoleRelay
			var err error
			if o.Link, err = p.joinLink(join, file); err != nil {
				return err
			}
			return p.serve(cmd.Context(), o.Options, func(filled overlay.Options) (runner, error) {
				o.Options = filled
				return p.engine.hub(o)
			})
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.Var(&public, "public", "address at which the others reach this machine; needed at the first start")
	f.Var(&listen, "listen", "UDP and TCP port to serve (default: the port of --public, on all addresses)")
	f.Var(text{&join, "LINK"}, "join", "be a further relay of the network that LINK invites to; - is standard input")
	f.Var(text{&file, "FILE"}, "link-file", "holds the link of --join; - is standard input")
	f.Var(&prefix, "overlay", "addresses of a new network (default: "+overlay.DefaultOverlay.String()+")")
	f.Var(&own, "address", "this machine's address inside (default: the first)")
	f.Var(&wished, "name", "what to call this machine (default: the host's name)")
	f.Var(&keyTTL, "key-ttl", "how long people's machines go on until they are renewed (default: as before, at first "+spanText(coord.DefaultKeyTTL)+")")
	f.Var(text{&cert, "FILE"}, "tls-cert", "certificate for --public, instead of a key that invites pin")
	f.Var(text{&certKey, "FILE"}, "tls-key", "the certificate's private key")
	f.Var(&ssh, "ssh", "run a jump host for OpenSSH there, e.g. :2222; users' keys: overlayd users add-key")
	return cmd
}

// joinLink finds the invite of a further relay. The first one of a network has
// none.
func (p *program) joinLink(join, file string) (string, error) {
	if join == "" && file == "" {
		return "", nil
	}
	var words []string
	if join != "" {
		words = []string{join}
	}
	return p.link(file, words)
}

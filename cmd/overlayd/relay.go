package main

import (
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
	)
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "run the network's public machine",
		Long: `Run the one machine that everybody can reach: it admits members, carries their
ciphertext to each other, and is a member itself. It cannot read what it carries.
Runs until Ctrl-C or overlayd down; state is kept, so a restart disturbs nobody.

One port must be open in the firewall, for UDP and TCP. The address that --public
names goes into the invites.`,
		Example: `  sudo overlayd relay --public 203.0.113.10
  sudo overlayd relay --public vpn.example.org:8443 --listen :8443
  sudo overlayd relay --public 203.0.113.10 --overlay 172.18.0.0/24 --address 172.18.0.10`,
		Args:        words(0, 0, ""),
		Annotations: map[string]string{daemonSettings: "yes"},
		PreRunE: func(*cobra.Command, []string) error {
			switch {
			case own.IsValid() && prefix.IsValid() && !prefix.Contains(own.Addr):
				return usage("choose one inside, or another --overlay", "--address: %s is not in the overlay %s", own.Addr, prefix.Prefix)
			case (cert == "") != (certKey == ""):
				return usage("give both, or neither for a key that invites pin", "--tls-cert and --tls-key belong together")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := overlay.HubOptions{
				Options: p.common.options(), Public: string(public), Listen: string(listen),
				Overlay: prefix.Prefix, Address: own.Addr, TLSCert: cert, TLSKey: certKey,
			}
			o.Name, o.Role = string(wished), coord.RoleRelay
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
	f.Var(&prefix, "overlay", "addresses of a new network (default: "+overlay.DefaultOverlay.String()+")")
	f.Var(&own, "address", "this machine's address inside (default: the first)")
	f.Var(&wished, "name", "what to call this machine (default: the host's name)")
	f.Var(text{&cert, "FILE"}, "tls-cert", "certificate for --public, instead of a key that invites pin")
	f.Var(text{&certKey, "FILE"}, "tls-key", "the certificate's private key")
	return cmd
}

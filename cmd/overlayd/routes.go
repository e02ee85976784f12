package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"overlayd/overlay"
	"overlayd/overlay/coord"
)

func (p *program) routesCommand() *cobra.Command {
	list := func(cmd *cobra.Command) error { return p.listRoutes(cmd.Context()) }
	cmd := &cobra.Command{
		Use:   "routes",
		Short: "list networks behind gateways, approve them",
		Long: `List the networks behind gateways: on the VPS all that any gateway offers or may
offer, elsewhere those that this machine uses or offers, with the reason when
one is not in use.

A network that a gateway offers without having been approved in its invite waits
until it is approved on the VPS.`,
		Example: `  overlayd routes
  sudo overlayd routes approve 192.168.1.0/24
  sudo overlayd routes withdraw 192.168.1.0/24 --node lab-gw`,
	}
	p.jsonFlag(cmd)
	listCmd := &cobra.Command{
		Use: "list", Short: "list them", Args: words(0, 0, ""),
		Long: "List the networks behind gateways; the same as overlayd routes.",
		RunE: func(cmd *cobra.Command, _ []string) error { return list(cmd) },
	}
	p.jsonFlag(listCmd)
	return group(cmd, list, listCmd,
		p.routeCommand("approve", "let members use a network behind a gateway",
			`Let members use a network that a gateway offers. On the VPS.`,
			coordinator.ApproveRoute),
		p.routeCommand("withdraw", "stop members from using a network",
			`Take a network out of every member's routes, now and until it is approved again.
On the VPS.`,
			coordinator.WithdrawRoute),
	)
}

func (p *program) routeCommand(verb, short, long string,
	call func(coordinator, context.Context, string, netip.Prefix) (coord.RouteInfo, error)) *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: verb + " PREFIX", Short: short, Long: long,
		Example: "  sudo overlayd routes " + verb + " 192.168.1.0/24",
		Args:    words(1, 1, "one PREFIX"),
		RunE: func(cmd *cobra.Command, args []string) error {
			prefix, err := lanPrefix(args[0])
			if err != nil {
				return valueFault("PREFIX", err)
			}
			r, err := admin(cmd.Context(), p, func(ctx context.Context, c coordinator) (coord.RouteInfo, error) {
				return call(c, ctx, node, prefix)
			})
			if err != nil {
				return err
			}
			row := networkRoute(r)
			if p.common.json {
				return printJSON(p.stdout, row)
			}
			fmt.Fprintf(p.stdout, "%s through %s: %s\n", row.Prefix, row.Via, row.State)
			return nil
		},
		ValidArgsFunction: p.completeRoutes,
	}
	cmd.Flags().Var(text{&node, "NODE"}, "node", "the gateway that offers it, when several do")
	p.completeFlag(cmd, "node", p.nodeNames)
	p.jsonFlag(cmd)
	return cmd
}

func (p *program) listRoutes(ctx context.Context) error {
	s, err := p.status(ctx)
	if err != nil {
		return err
	}
	routes := s.Routes
	if s.Node.Role == string(coord.RoleRelay) {
		if routes, err = p.networkRoutes(ctx); err != nil {
			return err
		}
	}
	if p.common.json {
		return printJSON(p.stdout, struct {
			Schema string                `json:"schema"`
			Routes []overlay.StatusRoute `json:"routes"`
		}{"overlayd.routes/v1", notNil(routes)})
	}
	if len(routes) == 0 {
		fmt.Fprintln(p.stderr, "no gateway offers a network yet")
		return nil
	}
	routeTable(routes).write(p.stdout)
	return nil
}

// networkRoutes asks the coordinator for every route of the network.
func (p *program) networkRoutes(ctx context.Context) ([]overlay.StatusRoute, error) {
	infos, err := admin(ctx, p, func(ctx context.Context, c coordinator) ([]coord.RouteInfo, error) {
		return c.Routes(ctx)
	})
	if err != nil {
		return nil, err
	}
	var routes []overlay.StatusRoute
	for _, r := range infos {
		routes = append(routes, networkRoute(r))
	}
	return routes, nil
}

// networkRoute is a route as the operator of the network sees it.
func networkRoute(r coord.RouteInfo) overlay.StatusRoute {
	s := overlay.StatusRoute{Prefix: r.Prefix, Via: r.Node, State: "approved"}
	switch {
	case !r.Approved && r.Advertised:
		s.State = overlay.RoutePending
		s.Reason = strings.Join([]string{"overlayd routes approve", r.Prefix.String(), "--node", r.Node}, " ")
	case !r.Approved:
		s.State, s.Reason = "withdrawn", ""
	case !r.Advertised:
		s.Reason = "its gateway does not offer it now"
	case !r.Online:
		s.State, s.Reason = overlay.RouteOffline, "its gateway is away"
	}
	return s
}

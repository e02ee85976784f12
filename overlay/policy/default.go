package policy

// Default is the policy of a new network.
const Default = `# Who may reach what. What no rule allows is refused.
#
# groups:                          # names for users, besides those of overlayd groups
#   students: [alice, carol]
# hosts:                           # names for addresses and prefixes
#   nas: 192.168.1.201
# rules:
#   - name: students-ssh           # shown in the record
#     src: group:students          # a user, group:NAME, tag:NAME, or "*" for every member
#     dst: nas                     # hosts, addresses, prefixes, nodes, tag:NAME, routes, "*"
#     ports: [tcp/22, icmp]        # tcp, udp, icmp, any; tcp/80,443 in quotes; tcp/8000-8100
#     times: {days: mon-fri, hours: "08:00-18:00", zone: Europe/Berlin}
# tests:                           # run before a policy is accepted
#   - who: alice
#     accept: nas:22
#     deny: [nas:80, nas:53/udp]

rules:
  # Every member reaches everything that the gateways advertise.
  - name: members-to-routes
    src: "*"
    dst: routes

  # Every member may ping the gateways and the relay, to see that they are there.
  - name: members-ping
    src: "*"
    dst: [gateways, relays]
    ports: icmp

# Nothing is open to anybody who is no member, and members do not reach each
# other's machines until a rule says so.
`

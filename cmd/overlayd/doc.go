// Command overlayd is the operator's side of the overlay: a file per verb, the
// flags and where they come from, and what is printed.
//
// # Output
//
// What was asked for goes to standard output: a link, a table, one JSON object
// and a newline. Everything else goes to standard error: the log of a running
// daemon, explanations, and errors as "overlayd: …" with the next step as
// "hint: …" below, lower case, no full stop. An invite link is never repeated
// in either. Colour only on a terminal, and never the only carrier of a fact.
//
// # Settings
//
// Every flag is a setting with one name: the flag's own for the common flags
// and those of the daemons (up, gateway, relay), verb and flag for the others
// ("ping-count"). The setting's value comes from the flag, or else from the
// environment (OVERLAYD_PING_COUNT), or else from the file that --config names
// (ping-count: 3), or else it is the default.
//
// # Exit codes
//
// They are the Exit constants of package overlay; fault.go maps every error to
// one of them.
package main

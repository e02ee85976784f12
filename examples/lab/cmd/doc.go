// Command lab runs overlayd's three real commands on the machines of package
// lab: "lab demo" shows what happens and ends, "lab up" keeps it up until
// Ctrl-C, "lab clean" removes what a killed lab left behind.
package main

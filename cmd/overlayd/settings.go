package main

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"overlayd/overlay"
)

// common are the flags of every verb.
type common struct {
	stateDir string
	socket   string
	link     string // the interface's name
	config   string
	logLevel level
	json     bool // only where a verb prints data
}

func (c *common) register(f *pflag.FlagSet) {
	c.stateDir, c.socket, c.link = overlay.DefaultStateDir, overlay.DefaultSocket, overlay.DefaultInterface
	f.Var(text{&c.stateDir, "DIR"}, "state-dir", "keys and state of this machine")
	f.Var(text{&c.socket, "FILE"}, "socket", "the daemon's Unix socket")
	f.Var(text{&c.link, "NAME"}, "interface", "the network interface")
	f.Var(text{&c.config, "FILE"}, "config", "settings, in YAML")
	f.Var(&c.logLevel, "log-level", "debug, info, warn or error")
	f.SortFlags = false
}

// options are what the common flags say to package overlay.
func (c *common) options() overlay.Options {
	return overlay.Options{StateDir: c.stateDir, Socket: c.socket, Interface: c.link, Version: build().Version}
}

// jsonFlag gives a verb that prints data its --json.
func (p *program) jsonFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&p.common.json, "json", false, "print one JSON object instead of text")
}

// daemonSettings marks the verbs whose flags are settings under their own names.
const daemonSettings = "daemon"

// settingName is what the setting of a flag is called in the environment and in
// config files; "" for flags that are no settings.
func settingName(cmd *cobra.Command, f *pflag.Flag) string {
	switch {
	case f.Name == "help":
		return ""
	case cmd.InheritedFlags().Lookup(f.Name) != nil, f.Name == "json", cmd.Annotations[daemonSettings] != "":
		return f.Name
	}
	verb := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
	return strings.ReplaceAll(verb, " ", "-") + "-" + f.Name
}

// envName is the environment variable of a setting.
func envName(setting string) string {
	return "OVERLAYD_" + strings.ToUpper(strings.ReplaceAll(setting, "-", "_"))
}

// fill gives the flags that the command line left alone their values from the
// environment and from the config file.
func (p *program) fill(cmd *cobra.Command) error {
	if err := p.fillFromEnvironment(cmd); err != nil {
		return err
	}
	if err := p.fillFromConfig(cmd); err != nil {
		return err
	}
	return p.fillPlaces(cmd)
}

// fillPlaces gives a user who is not root places of his own: for a daemon, and
// for the verbs that want one when he has one, or there is no other.
func (p *program) fillPlaces(cmd *cobra.Command) error {
	if p.root == nil || p.root() {
		return nil
	}
	dir, socket, err := overlay.UserPlaces(p.getenv)
	if err != nil {
		if cmd.Annotations[daemonSettings] != "" && !cmd.Flags().Changed("state-dir") {
			return err
		}
		return nil
	}
	if !cmd.Flags().Changed("state-dir") {
		p.common.stateDir = dir
	}
	if cmd.Flags().Changed("socket") {
		return nil
	}
	if cmd.Annotations[daemonSettings] != "" || exists(socket) || !exists(p.common.socket) {
		p.common.socket = socket
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// fillFromConfig takes the settings of the config file, if one is named.
func (p *program) fillFromConfig(cmd *cobra.Command) error {
	if p.common.config == "" {
		return nil
	}
	entries, err := readConfig(p.common.config)
	if err != nil {
		return err
	}
	if err := checkConfig(p.knownSettings(), entries); err != nil {
		return configFault(p.common.config, err)
	}
	for _, e := range entries {
		if err := apply(cmd, e); err != nil {
			return configFault(p.common.config, err)
		}
	}
	return nil
}

func (p *program) fillFromEnvironment(cmd *cobra.Command) error {
	var failed error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		setting := settingName(cmd, f)
		if f.Changed || setting == "" || failed != nil {
			return
		}
		// empty is unset: that is how a service's environment file leaves a setting out
		if v := p.getenv(envName(setting)); v != "" {
			if err := cmd.Flags().Set(f.Name, v); err != nil {
				failed = valueFault(envName(setting), err)
			}
		}
	})
	return failed
}

// apply sets the flag that e names, when cmd has it and nothing better did.
func apply(cmd *cobra.Command, e entry) error {
	var failed error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || settingName(cmd, f) != e.key {
			return
		}
		for _, v := range e.values {
			if err := cmd.Flags().Set(f.Name, v); err != nil && failed == nil {
				failed = entryError(e, err)
			}
		}
	})
	return failed
}

// knownSettings returns a flag for every setting there is, of a command tree of
// their own: checking a value sets it.
func (p *program) knownSettings() map[string]*pflag.Flag {
	known := make(map[string]*pflag.Flag)
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		cmd.InheritedFlags() // merges the common flags into cmd.Flags
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if s := settingName(cmd, f); s != "" && s != "config" {
				known[s] = f
			}
		})
		for _, c := range cmd.Commands() {
			walk(c)
		}
	}
	walk(new(program).rootCommand())
	return known
}

// checkConfig checks every entry, also those that the verb at hand does not
// need, so that a file is right or wrong for all verbs alike.
func checkConfig(known map[string]*pflag.Flag, entries []entry) error {
	for _, e := range entries {
		f, ok := known[e.key]
		if !ok {
			return unknownKey(known, e)
		}
		if _, many := f.Value.(list); !many && e.list {
			return &lineError{line: e.line, text: strconv.Quote(e.key) + " takes one value, not a list"}
		}
		for _, v := range e.values {
			if err := f.Value.Set(v); err != nil {
				return entryError(e, err)
			}
		}
	}
	return nil
}

func unknownKey(known map[string]*pflag.Flag, e entry) error {
	err := &lineError{line: e.line, text: "unknown setting " + strconv.Quote(e.key),
		hint: "settings are named like flags: overlayd help up"}
	names := slices.Sorted(maps.Keys(known))
	if n := nearest(strings.ReplaceAll(e.key, "_", "-"), names); n != "" {
		err.hint = "did you mean " + n + "?"
	}
	return err
}

func entryError(e entry, err error) error {
	return &lineError{line: e.line, text: e.key + ": " + cause(err), hint: hintOf(err)}
}

// valueFault is the usage error for a value that a flag did not take.
func valueFault(where string, err error) error {
	return usage(hintOf(err), "%s: %s", where, cause(err))
}

func hintOf(err error) string {
	if h, ok := errors.AsType[*hintedError](err); ok {
		return h.hint
	}
	return ""
}

// cause returns what a flag said about its value, without the flag package's
// frame around it, which repeats what the caller prints.
func cause(err error) string {
	if v, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		if inner := v.Unwrap(); inner != nil {
			err = inner
		}
	}
	text := err.Error()
	if i := strings.LastIndex(text, "parsing "); i >= 0 { // strconv's words
		text = text[i+len("parsing "):]
	}
	return text
}

// flagFault explains an error of the flag package.
func flagFault(cmd *cobra.Command, err error) error {
	hint := "overlayd help" + strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name())
	if v, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return valueFault("--"+v.GetFlag().Name, err)
	}
	if n, ok := errors.AsType[*pflag.NotExistError](err); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		if best := nearest(n.GetSpecifiedName(), names); best != "" {
			hint = "did you mean --" + best + "?"
		}
		return usage(hint, "unknown flag %s", dashed(n.GetSpecifiedName()))
	}
	return usage(hint, "%v", err)
}

func dashed(flag string) string {
	if len(flag) == 1 {
		return "-" + flag
	}
	return "--" + flag
}

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"

	"go.yaml.in/yaml/v3"
)

// A config file is one YAML mapping from setting names to values: scalars, or
// lists of scalars for settings that take several. Nothing else is understood,
// so that every mistake can be named with its line.

// configLimit is far above any sensible file: a hundred settings of a hundred
// bytes are 10 kB.
const configLimit = 1 << 20

// entry is one setting of a config file.
type entry struct {
	key    string
	line   int
	values []string
	list   bool
}

// lineError is a mistake in a config file.
type lineError struct {
	line int // 0: of the whole file
	text string
	hint string
}

func (e *lineError) Error() string {
	if e.line == 0 {
		return e.text
	}
	return fmt.Sprintf("line %d: %s", e.line, e.text)
}

func atLine(n *yaml.Node, hint, format string, args ...any) error {
	return &lineError{line: n.Line, text: fmt.Sprintf(format, args...), hint: hint}
}

// readConfig reads the settings of one file.
func readConfig(path string) ([]entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read config: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, configLimit+1))
	if err != nil {
		return nil, fmt.Errorf("read config %s: %w", path, err)
	}
	entries, err := parseConfig(data)
	if err != nil {
		return nil, configFault(path, err)
	}
	return entries, nil
}

// configFault gives a mistake in a file the file's name, as path:line, which
// editors understand.
func configFault(path string, err error) error {
	l, ok := errors.AsType[*lineError](err)
	switch {
	case !ok:
		return usage("", "config %s: %v", path, err)
	case l.line == 0:
		return usage(l.hint, "config %s: %s", path, l.text)
	}
	return usage(l.hint, "config %s:%d: %s", path, l.line, l.text)
}

// parseConfig reads the text of a config file. Its errors are *lineError.
func parseConfig(data []byte) ([]entry, error) {
	if len(data) > configLimit {
		return nil, &lineError{text: fmt.Sprintf("longer than %d bytes", configLimit)}
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, yamlError(err)
	}
	if doc.Kind == 0 { // empty, or only comments
		return nil, nil
	}
	top := doc.Content[0]
	if top.Kind == yaml.ScalarNode && top.Tag == "!!null" {
		return nil, nil
	}
	if top.Kind != yaml.MappingNode {
		return nil, atLine(top, "write one setting per line, as name: value", "not a list of settings")
	}
	var entries []entry
	seen := make(map[string]int, len(top.Content)/2)
	for i := 0; i+1 < len(top.Content); i += 2 {
		e, err := parseEntry(top.Content[i], top.Content[i+1])
		if err != nil {
			return nil, err
		}
		if first, ok := seen[e.key]; ok {
			return nil, atLine(top.Content[i], "keep one of the two", "%q is already set in line %d", e.key, first)
		}
		seen[e.key] = e.line
		entries = append(entries, e)
	}
	return entries, nil
}

func parseEntry(k, v *yaml.Node) (entry, error) {
	if k.Kind != yaml.ScalarNode || k.Value == "" {
		return entry{}, atLine(k, "write one setting per line, as name: value", "the name of a setting is a plain word")
	}
	e := entry{key: k.Value, line: k.Line}
	nodes := []*yaml.Node{v}
	if v.Kind == yaml.SequenceNode {
		nodes, e.list = v.Content, true
	}
	for _, n := range nodes {
		if n.Kind != yaml.ScalarNode {
			return entry{}, atLine(n, "", "%q takes a plain value, or a list of plain values", e.key)
		}
		if n.Tag == "!!null" || n.Value == "" {
			return entry{}, atLine(n, "give it a value, or take the line out", "%q has no value", e.key)
		}
		e.values = append(e.values, n.Value)
	}
	if len(e.values) == 0 {
		return entry{}, atLine(k, "give it a value, or take the line out", "%q has no value", e.key)
	}
	return e, nil
}

// yamlLine finds the line in the YAML reader's own errors.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

func yamlError(err error) error {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return &lineError{text: "not YAML: " + err.Error()}
	}
	line, _ := strconv.Atoi(m[1]) // 0 when it names none
	return &lineError{line: line, text: "not YAML: " + m[2]}
}

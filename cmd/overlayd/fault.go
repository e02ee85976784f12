package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"unicode"

	"overlayd/overlay"
)

// usage is the error for a command line that cannot be understood.
func usage(hint, format string, args ...any) error {
	return &overlay.Fault{Code: overlay.ExitUsage, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// failure is an error of the command line's own with another exit code.
func failure(code int, hint, format string, args ...any) error {
	return &overlay.Fault{Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// quiet ends the program with a code and without a word.
type quiet int

func (q quiet) Error() string { return fmt.Sprintf("exit %d", int(q)) }

// asFault says what to print for err and which code to end with.
func asFault(err error) *overlay.Fault {
	f := *overlay.AsFault(err)
	if f.Code != overlay.ExitFailure {
		return &f
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		f.Code = overlay.ExitPermission
		if f.Hint == "" {
			f.Hint = "run it as root (sudo)"
		}
	case errors.Is(err, context.DeadlineExceeded):
		f.Code = overlay.ExitUnreachable
	case errors.Is(err, context.Canceled):
		f.Message = "interrupted"
	}
	return &f
}

// report prints err, if there is anything to print, and returns the exit code.
func (p *program) report(err error) int {
	if err == nil {
		return overlay.ExitOK
	}
	if q, ok := errors.AsType[quiet](err); ok {
		return int(q)
	}
	f := asFault(err)
	fmt.Fprintln(p.stderr, "overlayd: "+oneLine(f.Message))
	if f.Hint != "" {
		fmt.Fprintln(p.stderr, "hint: "+oneLine(f.Hint))
	}
	return f.Code
}

// anyLink matches an invite link, or what is left of one. Six characters are
// fewer than any address, and more than the scheme's own "//;".
var anyLink = regexp.MustCompile(`(?i)ovl:[^\s"']{6,}`)

// withoutLinks replaces the links in s: a mistyped command must not put a
// secret into a log or a bug report.
func withoutLinks(s string) string { return anyLink.ReplaceAllString(s, "ovl://…") }

// oneLine makes s safe to show: some of it may come from another machine.
func oneLine(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ReplaceAll(s, "\n", "; "))
	return withoutLinks(s)
}

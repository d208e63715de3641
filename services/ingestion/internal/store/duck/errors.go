package duck

import (
	"context"
	"errors"
	"regexp"
	"strings"
)

var quoted = regexp.MustCompile(`"[^"]*"|'[^']*'`)

// engineError is an error of DuckDB without the data its text quotes: "Malformed
// JSON … Input: {…}" would carry people's properties into logs.
type engineError struct{ text string }

// Error is the engine's text, quoted parts left out.
func (e *engineError) Error() string { return e.text }

// scrub keeps our own errors and context's as they are and takes the data out of
// the engine's.
func scrub(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	text, _, _ := strings.Cut(err.Error(), "Input:")
	return &engineError{text: quoted.ReplaceAllString(strings.TrimSpace(text), "…")}
}

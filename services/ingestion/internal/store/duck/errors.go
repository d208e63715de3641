package duck

import (
	"context"
	"errors"
	"regexp"
	"strings"

	duckdb "github.com/duckdb/duckdb-go/v2"
)

var quoted = regexp.MustCompile(`"[^"]*"|'[^']*'`)

// engineError is an error of DuckDB without the data its text quotes: "Malformed
// JSON … Input: {…}" would carry people's properties into logs.
type engineError struct {
	text  string
	fatal bool
}

// Error is the engine's text, quoted parts left out.
func (e *engineError) Error() string { return e.text }

// scrub keeps our own errors and context's as they are and takes the data out of
// the engine's.
func scrub(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, done := errors.AsType[*engineError](err); done {
		return err
	}
	text, _, _ := strings.Cut(err.Error(), "Input:")
	return &engineError{text: quoted.ReplaceAllString(strings.TrimSpace(text), "…"), fatal: isFatal(err)}
}

// isFatal reports whether the engine is of no use any more.
func isFatal(err error) bool {
	if de, ok := errors.AsType[*duckdb.Error](err); ok && (de.Type == duckdb.ErrorTypeFatal || de.Type == duckdb.ErrorTypeInternal) {
		return true
	}
	return strings.Contains(err.Error(), "database has been invalidated") || strings.Contains(err.Error(), "FATAL Error")
}

// fatal is isFatal for an error that scrub may have seen.
func fatal(err error) bool {
	if err == nil {
		return false
	}
	if e, ok := errors.AsType[*engineError](err); ok {
		return e.fatal
	}
	return isFatal(err)
}

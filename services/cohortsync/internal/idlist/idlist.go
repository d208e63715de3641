// Package idlist reads lists of distinct ids from CSV.
package idlist

import (
	"bufio"
	"encoding/csv"
	"errors"
	"io"
	"strings"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

const (
	// MaxLines is how many ids a list may have.
	MaxLines = 10_000_000
	// maxLine is how long a line may be, in bytes.
	maxLine = 64 << 10
	// chunk is how many ids are handed on at a time.
	chunk = 10_000
)

// Line is an id and where it stands.
type Line struct {
	// Number counts lines from 1; the one with the names of the columns is 1.
	Number int64
	// ID is the text of its column, as it is.
	ID string
}

// Read calls fn with the lines of a CSV, some thousand at a time, until it fails. The
// first line must name a column distinct_id or $distinct_id. Errors of the CSV are
// Invalid faults.
func Read(in io.Reader, fn func([]Line) error) (lines int64, err error) {
	budget := &bounded{in: in}
	buf := bufio.NewReaderSize(budget, 4096)
	if bom, _ := buf.Peek(3); string(bom) == "\ufeff" {
		_, _ = buf.Discard(3) // they are there
	}
	r := csv.NewReader(buf)
	r.FieldsPerRecord, r.ReuseRecord = -1, true
	next := func() ([]string, error) {
		budget.left = maxLine
		return r.Read()
	}
	head, err := next()
	if errors.Is(err, io.EOF) {
		return 0, fault.Field("csv", "is empty; its first line must name the column distinct_id")
	}
	if err != nil {
		return 0, invalid(err)
	}
	column := -1
	for i, name := range head {
		if n := strings.ToLower(strings.TrimSpace(name)); column < 0 && (n == "distinct_id" || n == "$distinct_id") {
			column = i
		}
	}
	if column < 0 {
		return 0, fault.Field("csv", "line 1 must name the columns, one of them distinct_id or $distinct_id")
	}
	list := make([]Line, 0, chunk)
	for {
		record, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return lines, invalid(err)
		}
		if lines++; lines > MaxLines {
			return lines, fault.Field("csv", "has more than 10,000,000 lines")
		}
		number, _ := r.FieldPos(0)
		l := Line{Number: int64(number)}
		if column < len(record) {
			l.ID = strings.Clone(record[column])
		}
		if list = append(list, l); len(list) == chunk {
			if err := fn(list); err != nil {
				return lines, err
			}
			list = list[:0]
		}
	}
	if len(list) > 0 {
		return lines, fn(list)
	}
	return lines, nil
}

func invalid(err error) error {
	if pe, ok := errors.AsType[*csv.ParseError](err); ok {
		return fault.Field("csv", "line %d, column %d: %s", pe.Line, pe.Column, pe.Err)
	}
	return err
}

// bounded fails when more is read for one line than it may have.
type bounded struct {
	in   io.Reader
	left int
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, fault.Field("csv", "has a line of more than 64 KB; is a quote not closed?")
	}
	n, err := b.in.Read(p[:min(len(p), maxLine)])
	b.left -= n
	return n, err
}

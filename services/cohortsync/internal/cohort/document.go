package cohort

import (
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// Entry is a cohort of a document; its definition refers to others by their
// display name.
type Entry struct {
	DisplayName, Description string
	Definition               *typev1.Expression
}

// MaxEntries is how many cohorts a document may have.
const MaxEntries = 1000

type documentJSON struct {
	Cohorts []entryJSON `json:"cohorts"`
}

type entryJSON struct {
	DisplayName string          `json:"display_name"`
	Description string          `json:"description,omitempty"`
	Definition  json.RawMessage `json:"definition"`
}

// WriteDocument writes cohorts as one JSON document, definitions in their canonical form.
func WriteDocument(list []Entry) (string, error) {
	doc := documentJSON{Cohorts: []entryJSON{}}
	for _, e := range list {
		doc.Cohorts = append(doc.Cohorts, entryJSON{e.DisplayName, e.Description, Canonical(e.Definition)})
	}
	b, err := json.MarshalIndent(doc, "", "  ")
	return string(b) + "\n", err
}

// ParseDocument reads what WriteDocument wrote, or the like. It checks the form;
// the definitions are checked once their references are known.
func ParseDocument(field, text string) ([]Entry, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.DisallowUnknownFields()
	var doc documentJSON
	if err := dec.Decode(&doc); err != nil {
		return nil, fault.Field(field, "is no document of cohorts: %s", err)
	}
	if dec.More() {
		return nil, fault.Field(field, "has more behind the document of cohorts")
	}
	if n := len(doc.Cohorts); n == 0 || n > MaxEntries {
		return nil, fault.Field(field+".cohorts", "needs 1 to %d cohorts, not %d", MaxEntries, n)
	}
	seen := map[string]bool{}
	out := make([]Entry, len(doc.Cohorts))
	for i, c := range doc.Cohorts {
		at := fmt.Sprintf("%s.cohorts[%d]", field, i)
		if seen[c.DisplayName] {
			return nil, fault.Field(at+".display_name", "is that of an earlier cohort of the document")
		}
		seen[c.DisplayName] = true
		out[i] = Entry{c.DisplayName, c.Description, &typev1.Expression{}}
		if len(c.Definition) == 0 {
			return nil, fault.Field(at+".definition", "is required")
		}
		if err := protojson.Unmarshal(c.Definition, out[i].Definition); err != nil {
			return nil, fault.Field(at+".definition", "can't be read: %s", withoutValue(err))
		}
	}
	return out, nil
}

// withoutValue is a JSON error without the value at fault, which may be an id.
func withoutValue(err error) string {
	s := strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: ")
	if strings.Contains(s, "unknown field") {
		return s // names the field
	}
	if i := strings.LastIndex(s, ": "); i > 0 && strings.Contains(s, "invalid value") {
		s = s[:i]
	}
	s, _, _ = strings.Cut(s, " \"")
	return s
}

// Rename returns a definition whose references have other names.
func Rename(e *typev1.Expression, to func(name string) string) *typev1.Expression {
	out := proto.CloneOf(e)
	walk("", out, func(_ string, e *typev1.Expression) {
		for i, name := range e.GetInCohort().GetCohorts() {
			e.GetInCohort().Cohorts[i] = to(name)
		}
	})
	return out
}

// EachReference calls fn for each reference of a definition with its path.
func EachReference(field string, e *typev1.Expression, fn func(path, name string)) {
	walk(field, e, func(path string, e *typev1.Expression) {
		for i, name := range e.GetInCohort().GetCohorts() {
			fn(fmt.Sprintf("%s.in_cohort.cohorts[%d]", path, i), name)
		}
	})
}

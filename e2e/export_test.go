package e2e

import (
	"bytes"
	"encoding/json"
	"net/http"
	"sort"
	"testing"
	"time"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// exported is an event as the raw export shows it.
type exported struct {
	Event      string         `json:"event"`
	Properties map[string]any `json:"properties"`
}

// export reads all events back through the export in Mixpanel's shape.
func export(t *testing.T, c *harness.Client) []exported {
	t.Helper()
	now := time.Now().UTC()
	a := c.MustDo(t, http.MethodGet, "/api/2.0/export?project_id="+c.Creds.ProjectID+"&from_date="+now.AddDate(0, 0, -80).Format(time.DateOnly)+"&to_date="+now.AddDate(0, 0, 1).Format(time.DateOnly), nil, nil)
	if a.Status != http.StatusOK {
		t.Fatalf("export: HTTP %d: %s", a.Status, a.Body)
	}
	var out []exported
	for line := range bytes.Lines(a.Body) {
		var e exported
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		out = append(out, e)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Event < out[j].Event })
	return out
}

func names(events []exported) []string {
	var out []string
	for _, e := range events {
		out = append(out, e.Event)
	}
	return out
}

// profile reads a profile back through the profile API.
func profile(t *testing.T, c *harness.Client, id string) map[string]any {
	t.Helper()
	resp, err := c.Data().GetProfile(t.Context(), &ingestionv1.GetProfileRequest{Parent: c.Project, DistinctId: id})
	if err != nil {
		t.Fatalf("profile of %s: %v", id, err)
	}
	return resp.GetProfile().GetProperties().AsMap()
}

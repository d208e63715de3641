package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

func eventsCommand() *cobra.Command {
	root := &cobra.Command{Use: "events", Short: "Events in and out"}
	var from, to, where string
	export := &cobra.Command{Use: "export", Short: "Print events, one JSON object a line", Args: cobra.NoArgs, Example: "  cohortbridge events export --from 2026-11-01 --to 2026-11-30"}
	export.Flags().StringVar(&from, "from", "", "first UTC day, yyyy-mm-dd")
	export.Flags().StringVar(&to, "to", "", "last UTC day, yyyy-mm-dd")
	export.Flags().StringVar(&where, "where", "", `only events for which this is true, e.g. properties["plan"] == "pro"`)
	_ = export.MarkFlagRequired("from")
	_ = export.MarkFlagRequired("to")
	export.RunE = run(func(ctx context.Context, c *client, _ *cobra.Command, _ []string) error {
		stream, err := ingestionv1.NewDataServiceClient(c.conn).ExportEvents(ctx, &ingestionv1.ExportEventsRequest{Parent: c.project, FromDate: from, ToDate: to, Where: where})
		if err != nil {
			return err
		}
		out := bufio.NewWriter(c.out)
		for {
			chunk, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return out.Flush()
			}
			if err != nil {
				return err
			}
			for _, e := range chunk.GetEvents() {
				line, err := json.Marshal(lineOf(e))
				if err != nil {
					return err
				}
				if _, err := out.Write(append(line, '\n')); err != nil {
					return err
				}
			}
		}
	})
	imp := &cobra.Command{
		Use: "import [FILE]", Short: "Import events, one JSON object a line", Args: cobra.MaximumNArgs(1),
		Long: `Imports events, one JSON object a line, as events export prints them:
{"event":"App Launched","time":"2026-11-01T10:00:00Z","distinct_id":"u1","insert_id":"a1","properties":{"plan":"pro"}}
or as Mixpanel exports them:
{"event":"App Launched","properties":{"time":1793527200,"distinct_id":"u1","$insert_id":"a1","plan":"pro"}}
Lines that can't be read and events that break a rule are reported with their line and make the command fail; the
others are stored. Importing a file again is safe: events with an insert_id count once. A raw export over HTTP has whole
seconds: ask it for time_in_ms=true to import it where its events are already.`,
		Example: "  cohortbridge events import events.ndjson\n  cohortbridge events export --from 2026-11-01 --to 2026-11-30 | cohortbridge events import --project 2",
	}
	imp.RunE = run(func(ctx context.Context, c *client, cmd *cobra.Command, args []string) error {
		in := cmd.InOrStdin()
		size := int64(-1)
		if len(args) == 1 {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer func() { _ = f.Close() }() // only read from
			if st, err := f.Stat(); err == nil {
				size = st.Size()
			}
			in = f
		}
		return c.importEvents(ctx, in, size)
	})
	root.AddCommand(export, imp)
	return root
}

// eventLine is an event as a line of text. Properties keep their text, so that no
// digit of a number is lost.
type eventLine struct {
	Event          string         `json:"event"`
	Time           *time.Time     `json:"time,omitzero"`
	DistinctID     string         `json:"distinct_id,omitzero"`
	InsertID       string         `json:"insert_id,omitzero"`
	Properties     jsontext.Value `json:"properties,omitzero"`
	ProcessingTime *time.Time     `json:"processing_time,omitzero"` // of exports; not imported
	MtuVerdict     string         `json:"mtu_verdict,omitzero"`     // of exports; not imported
}

func lineOf(e *ingestionv1.ExportedEvent) *eventLine {
	at, processed := e.GetTime().AsTime(), e.GetProcessingTime().AsTime()
	return &eventLine{
		Event: e.GetEvent(), Time: &at, DistinctID: e.GetDistinctId(), InsertID: e.GetInsertId(),
		Properties: jsontext.Value(e.GetPropertiesJson()), ProcessingTime: &processed, MtuVerdict: e.GetMtuVerdict(),
	}
}

func parseLine(b []byte) (*ingestionv1.Event, error) {
	var l eventLine
	if err := json.Unmarshal(b, &l, json.RejectUnknownMembers(true)); err != nil {
		return nil, err
	}
	if k := l.Properties.Kind(); len(l.Properties) > 0 && k != '{' {
		return nil, errors.New("properties must be an object")
	}
	e := &ingestionv1.Event{Event: l.Event, DistinctId: l.DistinctID, InsertId: l.InsertID, PropertiesJson: string(l.Properties)}
	if l.Time != nil {
		e.Time = timestamppb.New(*l.Time)
	}
	return e, nil
}

// inWords is an error of a line without the names of our own types.
func inWords(err error) string {
	var s *json.SemanticError
	if !errors.As(err, &s) {
		return strings.TrimPrefix(err.Error(), "jsontext: ") // of the syntax; says where
	}
	where := strings.TrimPrefix(string(s.JSONPointer), "/")
	switch {
	case errors.Is(err, json.ErrUnknownName):
		return where + " is no field of an event; want event, time, distinct_id, insert_id, properties"
	case where == "":
		return "must be an object"
	case where == "time":
		return "time must be a text such as 2026-11-01T10:00:00Z"
	}
	return where + " must be a text"
}

// What one request carries: at most as many events as are allowed in one, and of
// lines less than the 10 MB that are.
const (
	importBatch = 2000
	importBytes = 4 << 20
	lineBytes   = 2 << 20
)

// importer sends the events of a file in batches and adds up the answers.
type importer struct {
	client *client
	total  *ingestionv1.ImportEventsResponse
	batch  []*ingestionv1.Event
	lines  []int32 // where each of the batch stands in the file, from 0
	size   int
}

func (i *importer) refuse(line int32, field, message string) {
	i.total.FailedRecords = append(i.total.FailedRecords, &ingestionv1.FailedRecord{Index: line, Field: field, Message: message})
}

func (i *importer) add(ctx context.Context, line int32, b []byte) error {
	e, err := parseLine(b)
	if err != nil {
		i.refuse(line, "", "is no event: "+inWords(err))
		return nil
	}
	i.batch, i.lines, i.size = append(i.batch, e), append(i.lines, line), i.size+len(b)
	if len(i.batch) < importBatch && i.size < importBytes {
		return nil
	}
	return i.flush(ctx)
}

func (i *importer) flush(ctx context.Context) error {
	if len(i.batch) == 0 {
		return nil
	}
	resp, err := ingestionv1.NewIngestionServiceClient(i.client.conn).ImportEvents(ctx, &ingestionv1.ImportEventsRequest{Parent: i.client.project, Events: i.batch})
	if err != nil {
		return fmt.Errorf("lines %d to %d and those behind them were not imported: %w", i.lines[0]+1, i.lines[len(i.lines)-1]+1, err)
	}
	i.total.Imported += resp.GetImported()
	i.total.Duplicates += resp.GetDuplicates()
	for _, f := range resp.GetFailedRecords() {
		i.refuse(i.lines[f.GetIndex()], f.GetField(), f.GetMessage())
	}
	i.batch, i.lines, i.size = i.batch[:0], i.lines[:0], 0
	return nil
}

func (c *client) importEvents(ctx context.Context, in io.Reader, size int64) error {
	bar := progressbar.NewOptions64(size, progressbar.OptionSetWriter(c.err), progressbar.OptionSetVisibility(c.showsProgress()), progressbar.OptionShowBytes(true), progressbar.OptionClearOnFinish())
	i := &importer{client: c, total: &ingestionv1.ImportEventsResponse{}}
	lines := bufio.NewReaderSize(in, 1<<16)
	for line := int32(0); ; line++ {
		b, long, err := readLine(lines)
		_ = bar.Add(len(b) + 1)
		if line == 0 {
			b = bytes.TrimPrefix(b, []byte("\ufeff"))
		}
		switch {
		case long:
			i.refuse(line, "", fmt.Sprintf("longer than %d bytes", lineBytes))
		case len(bytes.TrimSpace(b)) > 0:
			if err := i.add(ctx, line, b); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if err := i.flush(ctx); err != nil {
		return err
	}
	_ = bar.Finish()
	n := len(i.total.GetFailedRecords())
	if err := c.print(i.total, table.Row{"Imported", "Duplicates", "Refused"}, []table.Row{{i.total.GetImported(), i.total.GetDuplicates(), n}}); err != nil {
		return err
	}
	return i.refused()
}

// shownFailures is how many refused lines a person is shown; --output json has all.
const shownFailures = 10

func (i *importer) refused() error {
	all := i.total.GetFailedRecords()
	if len(all) == 0 {
		return nil
	}
	if !i.client.json {
		for _, f := range all[:min(len(all), shownFailures)] {
			if _, err := fmt.Fprintf(i.client.err, "line %d: %s\n", f.GetIndex()+1, f.GetMessage()); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%d of the lines were refused; the first is line %d: %s", len(all), all[0].GetIndex()+1, all[0].GetMessage())
}

// readLine reads a line without its end. Of one that is too long it keeps nothing.
func readLine(r *bufio.Reader) (line []byte, long bool, err error) {
	for {
		part, err := r.ReadSlice('\n')
		if long = long || len(line)+len(part) > lineBytes; long {
			line = nil
		} else {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimSuffix(line, []byte("\n")), long, err
		}
	}
}

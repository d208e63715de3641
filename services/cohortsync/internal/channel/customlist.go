package channel

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/clevertap"
)

// customList upserts profiles by upload and then puts the whole list in the
// segment's place: it needs nothing enabled on the account.
type customList struct {
	cfg     Config
	columns []column
}

// NewCustomList returns the custom list channel.
func NewCustomList(cfg Config) Publisher { return &customList{cfg: cfg, columns: prepare(cfg.Columns)} }

// Name implements Channel.
func (c *customList) Name() string { return "CUSTOM_LIST" }

// Traits implements Channel.
func (c *customList) Traits() Traits {
	return Traits{MaxRecords: clevertap.MaxUploadRecords, MaxBytes: clevertap.MaxUploadBytes - 64, Concurrency: 15, Group: "upload"}
}

// Encode implements Channel.
func (c *customList) Encode(m Member) (Encoded, string) {
	id, skip := identify(m)
	if skip != "" {
		return Encoded{}, skip
	}
	b := make([]byte, 0, 192)
	b = append(b, `{"type":"profile","identity":`...)
	b = append(b, quote(id)...)
	b = append(b, `,"profileData":{`...)
	at := len(b)
	b, warnings := fields(b, c.columns, m.Columns, true)
	if len(b) > at {
		b = append(b[:at], b[at+1:]...) // the first field has no comma before it
	}
	return Encoded{Identifier: id, Record: append(b, "}}"...), Warnings: warnings}, ""
}

// Removal implements Channel.
func (c *customList) Removal(string) []byte { return nil }

// Send implements Channel.
func (c *customList) Send(ctx context.Context, _ Segment, b Batch) ([]Refusal, error) {
	refused, err := c.cfg.Client.Upload(ctx, c.cfg.Account, b.Records)
	if err != nil {
		return nil, err
	}
	out := make([]Refusal, 0, len(refused))
	for _, r := range refused {
		out = append(out, Refusal{Index: r.Index, Code: r.Code, Retryable: r.Retryable()})
	}
	return out, nil
}

// PublishLine implements Publisher.
func (c *customList) PublishLine(identifier string) string {
	if strings.ContainsAny(identifier, "\",\r\n") || identifier[0] == ' ' {
		return `i,"` + strings.ReplaceAll(identifier, `"`, `""`) + "\"\n"
	}
	return "i," + identifier + "\n"
}

// Publish implements Publisher.
func (c *customList) Publish(ctx context.Context, s Segment, file io.ReaderAt, size int64) (int, error) {
	calls := 0
	url, err := "", error(nil)
	// Once with no content type, as the documentation shows; a signature that
	// covers one answers 403, and then a fresh URL is tried with text/csv.
	for _, contentType := range []string{"", "text/csv"} {
		calls++
		if url, err = c.cfg.Client.ListUploadURL(ctx, c.cfg.Account); err != nil {
			return calls, err
		}
		calls++
		err = c.cfg.Client.PutList(ctx, url, io.NewSectionReader(file, 0, size), size, contentType)
		var ce *clevertap.Error
		if errors.As(err, &ce) && ce.Class == clevertap.StaleURL {
			continue
		}
		break
	}
	if err != nil {
		return calls, err
	}
	calls++
	_, err = c.cfg.Client.CompleteList(ctx, c.cfg.Account, clevertap.List{
		Name: s.Name, Filename: "cohort-" + s.CohortID + ".csv", Creator: "cohortbridge", URL: url,
	})
	return calls, err
}

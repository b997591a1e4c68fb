//! A plain client of the local cluster: one method an RPC that `demo`, `dev` and `bench` need.
//!
//! Never retries by itself: who waits for something says how long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use rowen_api::v1;
use rowen_api::v1::cluster_service_client::ClusterServiceClient;
use rowen_api::v1::fabric_service_client::FabricServiceClient;
use rowen_api::v1::filler_service_client::FillerServiceClient;
use rowen_api::v1::job_service_client::JobServiceClient;
use rowen_api::v1::node_service_client::NodeServiceClient;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::output::words::job_state;

/// Connects when first used, and again after the control plane was restarted.
pub(crate) struct Rpc {
    channel: Channel,
    client: String,
    seq: AtomicU64,
}

impl Rpc {
    pub(crate) fn connect(addr: &str) -> Rpc {
        static CLIENTS: AtomicU64 = AtomicU64::new(0);
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .expect("an address is a valid authority")
            .connect_timeout(Duration::from_secs(1))
            .timeout(Duration::from_secs(600))
            .tcp_nodelay(true);
        let started = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos());
        let nth = CLIENTS.fetch_add(1, Ordering::Relaxed);
        let client = format!("local-{}-{started}-{nth}", std::process::id());
        Rpc { channel: endpoint.connect_lazy(), client, seq: AtomicU64::new(0) }
    }

    /// A request id that was not used before.
    pub(crate) fn request_id(&self) -> v1::RequestId {
        let seq = self.seq.fetch_add(1, Ordering::Relaxed) + 1;
        v1::RequestId { client: self.client.clone(), seq }
    }

    pub(crate) async fn status(&self) -> Result<v1::ClusterStatus, Status> {
        let mut client = ClusterServiceClient::new(self.channel.clone());
        Ok(client.get_status(v1::GetStatusRequest::default()).await?.into_inner())
    }

    pub(crate) async fn watch_occupancy(&self) -> Result<tonic::Streaming<v1::Occupancy>, Status> {
        let mut client =
            ClusterServiceClient::new(self.channel.clone()).max_decoding_message_size(64 << 20);
        Ok(client.watch_occupancy(v1::WatchOccupancyRequest {}).await?.into_inner())
    }

    pub(crate) async fn nodes(&self) -> Result<Vec<v1::Node>, Status> {
        let mut client = NodeServiceClient::new(self.channel.clone());
        Ok(client.list_nodes(v1::ListNodesRequest {}).await?.into_inner().nodes)
    }

    pub(crate) async fn fabric(&self) -> Result<Option<v1::Fabric>, Status> {
        let mut client = FabricServiceClient::new(self.channel.clone());
        Ok(client.get_fabric(v1::GetFabricRequest {}).await?.into_inner().fabric)
    }

    pub(crate) async fn set_fabric(&self, fabric: v1::Fabric) -> Result<()> {
        let mut client = FabricServiceClient::new(self.channel.clone());
        let request =
            v1::SetFabricRequest { request: Some(self.request_id()), fabric: Some(fabric) };
        client.set_fabric(request).await?;
        Ok(())
    }

    pub(crate) async fn submit(&self, spec: v1::JobSpec) -> Result<u64, Status> {
        self.submit_as(self.request_id(), spec).await
    }

    pub(crate) async fn submit_as(
        &self,
        request: v1::RequestId,
        spec: v1::JobSpec,
    ) -> Result<u64, Status> {
        let mut client = JobServiceClient::new(self.channel.clone());
        let request = v1::SubmitJobRequest { request: Some(request), spec: Some(spec) };
        Ok(client.submit_job(request).await?.into_inner().id)
    }

    pub(crate) async fn plan(&self, spec: v1::JobSpec) -> Result<v1::PlanJobResponse, Status> {
        let mut client = JobServiceClient::new(self.channel.clone());
        Ok(client.plan_job(v1::PlanJobRequest { spec: Some(spec) }).await?.into_inner())
    }

    pub(crate) async fn job(&self, id: u64) -> Result<v1::Job, Status> {
        let mut client = JobServiceClient::new(self.channel.clone());
        Ok(client.get_job(v1::GetJobRequest { id: id.to_string() }).await?.into_inner())
    }

    pub(crate) async fn jobs(&self) -> Result<Vec<v1::Job>, Status> {
        let mut client = JobServiceClient::new(self.channel.clone());
        let request = v1::ListJobsRequest { all: true, ..Default::default() };
        Ok(client.list_jobs(request).await?.into_inner().jobs)
    }

    pub(crate) async fn why(&self, id: u64) -> Result<v1::WhyJobResponse, Status> {
        let mut client = JobServiceClient::new(self.channel.clone());
        Ok(client.why_job(v1::WhyJobRequest { id: id.to_string() }).await?.into_inner())
    }

    pub(crate) async fn cancel(&self, id: u64) -> Result<(), Status> {
        let mut client = JobServiceClient::new(self.channel.clone());
        let request = v1::CancelJobRequest { request: Some(self.request_id()), id: id.to_string() };
        client.cancel_job(request).await?;
        Ok(())
    }

    pub(crate) async fn watch(&self, id: u64) -> Result<tonic::Streaming<v1::Job>, Status> {
        let mut client = JobServiceClient::new(self.channel.clone());
        Ok(client.watch_job(v1::WatchJobRequest { id: id.to_string() }).await?.into_inner())
    }

    /// The job as it is when `enough` first holds of it; a lost stream is opened again.
    pub(crate) async fn wait_job(
        &self,
        id: u64,
        limit: Duration,
        enough: impl Fn(&v1::Job) -> bool,
    ) -> Result<v1::Job> {
        let mut last = None;
        let wait = async {
            loop {
                if let Ok(mut stream) = self.watch(id).await {
                    while let Ok(Some(job)) = stream.message().await {
                        if enough(&job) {
                            return job;
                        }
                        last = Some(job);
                    }
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(job) => Ok(job),
            Err(_) => match last {
                Some(job) => bail!(
                    "job {id} is still {} after {} s: {}",
                    job_state(job.state()),
                    limit.as_secs(),
                    job.reason
                ),
                None => bail!("nothing was heard of job {id} for {} s", limit.as_secs()),
            },
        }
    }

    /// All that the workers of the newest attempt have written to standard output.
    pub(crate) async fn output(&self, id: u64) -> Result<Vec<String>, Status> {
        let mut client = JobServiceClient::new(self.channel.clone());
        let request = v1::ReadLogsRequest {
            id: id.to_string(),
            stream: "stdout".into(),
            ..Default::default()
        };
        let mut stream = client.read_logs(request).await?.into_inner();
        let mut lines = Vec::new();
        while let Some(line) = stream.message().await? {
            lines.push(String::from_utf8_lossy(&line.text).into_owned());
        }
        Ok(lines)
    }

    pub(crate) async fn deploy(&self, spec: v1::FillerSpec) -> Result<u64, Status> {
        let mut client = FillerServiceClient::new(self.channel.clone());
        let request =
            v1::DeployFillerRequest { request: Some(self.request_id()), spec: Some(spec) };
        Ok(client.deploy_filler(request).await?.into_inner().id)
    }

    pub(crate) async fn fillers(&self) -> Result<Vec<v1::Filler>, Status> {
        let mut client = FillerServiceClient::new(self.channel.clone());
        Ok(client.list_fillers(v1::ListFillersRequest {}).await?.into_inner().fillers)
    }
}

/// Whether the job will not change any more.
pub(crate) fn ended(job: &v1::Job) -> bool {
    use v1::JobState::{Cancelled, Completed, Failed};
    matches!(job.state(), Completed | Failed | Cancelled)
}

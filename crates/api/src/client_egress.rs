//! The client's calls about what may leave a cluster.

use hyper::Method;
use model::ClusterId;

use crate::egress::{
    AddEgressRule, ChangedEgressRule, EditEgressRule, Egress, EgressRule, EgressVerdict, SetEgressPolicy,
    SetEngineEgress, TestEgress,
};
use crate::{Client, Error, encode_segment};

impl Client {
    /// Policy and rules of a cluster.
    pub async fn egress(&self, id: ClusterId) -> Result<Egress, Error> {
        self.get(&format!("/chitin/clusters/{id}/egress")).await
    }

    /// Lets the engine of a dedicated cluster reach what rules name, or not; it holds when this returns. Wakes the cluster.
    pub async fn set_engine_egress(&self, id: ClusterId, engine: bool) -> Result<Egress, Error> {
        let path = format!("/chitin/clusters/{id}/egress");
        self.call(Method::PUT, &path, Some(&SetEngineEgress { engine })).await
    }

    /// Sets the policy; it holds when this returns, also for what is under way.
    pub async fn set_egress_policy(&self, id: ClusterId, allow_all: bool) -> Result<(), Error> {
        let path = format!("/clusters/{id}/networking/egress-rules/egress-traffic-policy");
        let _: serde_json::Value =
            self.call(Method::POST, &path, Some(&SetEgressPolicy { allow_all })).await?;
        Ok(())
    }

    /// Adds a rule.
    pub async fn add_egress_rule(&self, id: ClusterId, rule: &AddEgressRule) -> Result<EgressRule, Error> {
        let path = format!("/clusters/{id}/networking/egress-rules");
        let changed: ChangedEgressRule = self.call(Method::POST, &path, Some(rule)).await?;
        Ok(changed.rule)
    }

    /// Changes a rule.
    pub async fn edit_egress_rule(
        &self,
        id: ClusterId,
        rule_id: &str,
        change: &EditEgressRule,
    ) -> Result<EgressRule, Error> {
        let changed: ChangedEgressRule = self.call(Method::PATCH, &rule(id, rule_id), Some(change)).await?;
        Ok(changed.rule)
    }

    /// Removes a rule; what stood on it is broken off.
    pub async fn delete_egress_rule(&self, id: ClusterId, rule_id: &str) -> Result<EgressRule, Error> {
        let changed: ChangedEgressRule = self.delete(&rule(id, rule_id)).await?;
        Ok(changed.rule)
    }

    /// Says whether a URL or `HOST:PORT` would be let through. Nothing is connected to.
    pub async fn test_egress(&self, id: ClusterId, destination: String) -> Result<EgressVerdict, Error> {
        let path = format!("/chitin/clusters/{id}/egress/test");
        self.call(Method::POST, &path, Some(&TestEgress { destination })).await
    }
}

fn rule(id: ClusterId, rule_id: &str) -> String {
    format!("/clusters/{id}/networking/egress-rules/{}", encode_segment(rule_id))
}
